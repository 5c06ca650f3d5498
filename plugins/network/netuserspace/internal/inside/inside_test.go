package inside

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/fakeinit"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// asInit makes this program do init's part in a fresh namespace, for a path.
const asInit = "NETUSERSPACE_TEST_INIT"

func TestMain(m *testing.M) {
	if p := os.Getenv(asInit); p != "" {
		if err := initPart(p); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func initPart(path string) error {
	openings, setups, err := Ask(map[string]Path{"kernel": Kernel, "netstack": Netstack, "frames": Frames}[path], []network.PortMap{{Protocol: "tcp"}})
	if err != nil {
		return err
	}
	files, missing, err := fakeinit.Do(&network.PrepareResponse{Openings: openings, Setups: setups})
	for _, f := range files {
		fmt.Println("file", f.Name())
	}
	for _, m := range missing {
		fmt.Println("missing", m)
	}
	if err != nil {
		return err
	}
	i, err := net.InterfaceByName(IfName)
	if err == nil && i.Index != TapIndex {
		err = fmt.Errorf("the index of %s is %d", IfName, i.Index)
	}
	return err
}

// run gives what init of an ordinary sandbox would: its user and network namespace are
// its own, and on the host it is nobody.
func run(t *testing.T, path string) []string {
	t.Helper()
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), asInit+"="+path)
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET, Credential: &syscall.Credential{},
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

func TestAnOrdinaryUsersKernelDoesAllThatIsAskedFor(t *testing.T) {
	for path, files := range map[string]int{"kernel": 9 + Pool, "netstack": 3, "frames": 1} {
		got := run(t, path)
		if slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "missing") }) {
			t.Errorf("%s: %v", path, got)
		}
		if len(got) != files {
			t.Errorf("%s: %d files: %v", path, len(got), got)
		}
		if len(got) > 250 {
			t.Errorf("%s: %d files are more than init passes", path, len(got))
		}
	}
}
