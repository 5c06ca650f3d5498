package seccomp_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp"
	"github.com/nucleus-runtime/nucleus/core/security/seccomp/compile"
)

// The test binary is its own children: under the name of the helper it compiles, and with childEnv set it loads a filter
// and makes calls or executes a program.
const (
	childEnv   = "NUCLEUS_TEST_SECCOMP_CHILD"
	helperName = "nucleus-seccomp"
)

// child is what a child process is told by childEnv.
type child struct {
	Filters [][]byte
	Calls   []call
	Exec    []string
}

type call struct {
	Number uintptr
	Args   [6]uintptr
}

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == helperName {
		serveHelper()
		return
	}
	if text, ok := os.LookupEnv(childEnv); ok {
		if err := runChild(text); err != nil {
			fmt.Fprintln(os.Stderr, "child:", err)
			os.Exit(99)
		}
		return
	}
	os.Exit(m.Run())
}

func serveHelper() {
	input, err := io.ReadAll(os.Stdin)
	if err == nil {
		input, err = seccomp.ServeHelper(input, compile.Policy)
	}
	if err == nil {
		_, err = os.Stdout.Write(input)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func runChild(text string) error {
	var c child
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	for _, raw := range c.Filters {
		if err := loadFilter(raw); err != nil {
			return err
		}
	}
	for _, call := range c.Calls {
		a := call.Args
		_, _, errno := syscall.RawSyscall6(call.Number, a[0], a[1], a[2], a[3], a[4], a[5])
		fmt.Println(uint(errno))
	}
	if c.Exec == nil {
		return nil
	}
	env := append(os.Environ(), "HOME=/tmp")
	env = append(env[:0:0], filterEnv(env)...)
	return syscall.Exec(c.Exec[0], c.Exec, env)
}

func filterEnv(env []string) []string {
	var kept []string
	for _, e := range env {
		if !strings.HasPrefix(e, childEnv+"=") {
			kept = append(kept, e)
		}
	}
	return kept
}

// loadFilter loads with TSYNC: the threads of the Go runtime must not stay outside.
func loadFilter(raw []byte) error {
	prog := unix.SockFprog{Len: uint16(len(raw) / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&raw[0]))}
	_, _, errno := syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(raw)
	if errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	return nil
}
