package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

func TestSocketIsForItsOwnerAlone(t *testing.T) {
	census(t)
	for _, umask := range []int{0, 0o022, 0o177} {
		dir := shortDir(t)
		old := unix.Umask(umask)
		s, err := Listen(dir)
		unix.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		st, err := os.Lstat(filepath.Join(dir, SocketName))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != os.ModeSocket|0o600 {
			t.Errorf("umask %04o: %v", umask, st.Mode())
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestLongPathsAreNoProblem(t *testing.T) {
	census(t)
	dir := shortDir(t)
	for range 4 {
		dir = filepath.Join(dir, strings.Repeat("long", 50))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(t.Context(), echo) }()
	if err := connected(t, dir).Call(t.Context(), "echo", nil, nil); err != nil {
		t.Error(err)
	}
	if err := errors.Join(s.Close(), <-served); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, SocketName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Close: %v, want no socket", err)
	}
}

// bindOnly leaves a socket that nobody listens on, as a killed supervisor does.
func bindOnly(t *testing.T, dir string) {
	t.Helper()
	fd, err := newSocket()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, SocketName)}); err != nil {
		t.Fatal(err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	census(t)
	dir := shortDir(t)
	bindOnly(t, dir)
	s, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(t.Context(), echo) }()
	if err := connected(t, dir).Call(t.Context(), "echo", nil, nil); err != nil {
		t.Error(err)
	}
	if err := errors.Join(s.Close(), <-served); err != nil {
		t.Error(err)
	}
}

func TestWhatIsNotAServersRemainsStays(t *testing.T) {
	path := func(dir string) string { return filepath.Join(dir, SocketName) }
	for _, c := range []struct {
		name  string
		place func(t *testing.T, dir string) error
	}{
		{"file", func(_ *testing.T, dir string) error { return os.WriteFile(path(dir), []byte("mine"), 0o600) }},
		{"directory", func(_ *testing.T, dir string) error { return os.Mkdir(path(dir), 0o700) }},
		{"link into nothing", func(_ *testing.T, dir string) error { return os.Symlink("nothing", path(dir)) }},
		{"link to a socket", func(t *testing.T, dir string) error {
			other := shortDir(t)
			bindOnly(t, other)
			return os.Symlink(path(other), path(dir))
		}},
		{"another user's socket", func(t *testing.T, dir string) error {
			testutil.Needs(t, testutil.Root)
			bindOnly(t, dir)
			return os.Chown(path(dir), 65534, 65534)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			census(t)
			dir := shortDir(t)
			if err := c.place(t, dir); err != nil {
				t.Fatal(err)
			}
			before, err := os.Lstat(path(dir))
			if err != nil {
				t.Fatal(err)
			}
			s, err := Listen(dir)
			var taken *TakenError
			if !errors.As(err, &taken) {
				t.Errorf("%v, want a *TakenError", err)
			}
			if s != nil {
				_ = s.Close()
			}
			if after, err := os.Lstat(path(dir)); err != nil || !os.SameFile(before, after) {
				t.Errorf("it is gone (%v)", err)
			}
		})
	}
}

func TestLiveSocketIsNotTaken(t *testing.T) {
	_, dir := serve(t, echo)
	_, err := Listen(dir)
	var taken *TakenError
	if !errors.As(err, &taken) || !strings.Contains(taken.Error(), "somebody listens") {
		t.Errorf("%v, want a *TakenError", err)
	}
	if err := connected(t, dir).Call(t.Context(), "echo", nil, nil); err != nil {
		t.Errorf("the first server: %v", err)
	}
}

func TestCloseLeavesASuccessorsSocket(t *testing.T) {
	census(t)
	dir := shortDir(t)
	first, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, SocketName)); err != nil {
		t.Fatal(err)
	}
	second, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, SocketName)); err != nil {
		t.Error(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}

func TestDialTellsThatNobodyListens(t *testing.T) {
	census(t)
	empty, stale, odd := shortDir(t), shortDir(t), shortDir(t)
	bindOnly(t, stale)
	for _, dir := range []string{filepath.Join(empty, "missing"), empty, stale} {
		if _, err := Dial(t.Context(), dir); !errors.Is(err, ErrNoSupervisor) {
			t.Errorf("%s: %v, want ErrNoSupervisor", dir, err)
		}
	}
	_, dir := serve(t, echo)
	if err := os.Symlink(filepath.Join(dir, SocketName), filepath.Join(odd, SocketName)); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(t.Context(), odd); err == nil || errors.Is(err, ErrNoSupervisor) {
		t.Errorf("a link: %v, want another error", err)
	}
	if _, err := Listen(filepath.Join(empty, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestDialWaitsForAPlaceInTheQueueAsLongAsItsContext(t *testing.T) {
	census(t)
	dir := shortDir(t)
	s, err := Listen(dir) // nobody serves
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	full := errors.New("full")
	for {
		fd, err := newSocket()
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, SocketName)}); err != nil {
			break
		}
	}
	cancel(full)
	if _, err := Dial(ctx, dir); !errors.Is(err, full) {
		t.Errorf("%v, want the context's error", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// start runs this binary as another process, and gives what it says first.
func start(t *testing.T, credential *syscall.Credential, what, dir string) (cmd *exec.Cmd, says string) {
	t.Helper()
	program := "/proc/self/exe"
	if credential != nil {
		// Where go test puts the binary, others may not go.
		program = filepath.Join(publicDir(t), "child")
		b, err := os.ReadFile("/proc/self/exe")
		if err == nil {
			err = os.WriteFile(program, b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd = exec.Command(program, dir)
	cmd.Env = []string{childEnv + "=" + what}
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed, most of the time
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return cmd, strings.TrimSpace(line)
}

func TestKilledClientEndsItsRequest(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan struct{})
	_, dir := serve(t, func(ctx context.Context, _ *Conn, _ Message, _ []*os.File) {
		close(begun)
		<-ctx.Done()
		close(ended)
	})
	cmd, says := start(t, nil, "hang", dir)
	if says != fmt.Sprint(error(nil)) {
		t.Fatal(says)
	}
	soon(t, begun, "the request")
	select {
	case <-ended:
		t.Fatal("the context ended while the client lives")
	default:
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	soon(t, ended, "the handler's context")
}

var nobody = &syscall.Credential{Uid: 65534, Gid: 65534}

// publicDir is a directory that everybody may use: t.TempDir is closed to
// other users.
func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nucleus-control-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// The mode of the socket keeps others out. Opened to them by hand, it is the
// server that does.
func TestAnotherUserIsDenied(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	census(t)
	dir := publicDir(t)
	s, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		served <- s.Serve(t.Context(), func(ctx context.Context, c *Conn, m Message, fds []*os.File) {
			if _, uid, _ := c.Peer(); uid != 0 {
				t.Errorf("uid %d is served", uid)
			}
			echo(ctx, c, m, fds)
		})
	}()
	if _, says := start(t, nobody, "call", dir); !strings.Contains(says, "permission denied") {
		t.Errorf("by mode: %q", says)
	}
	if err := os.Chmod(filepath.Join(dir, SocketName), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, says := start(t, nobody, "call", dir); says != CodeDenied {
		t.Errorf("by the server: %q", says)
	}
	if err := connected(t, dir).Call(t.Context(), "echo", nil, nil); err != nil {
		t.Errorf("its own user: %v", err)
	}
	if err := errors.Join(s.Close(), <-served); err != nil {
		t.Error(err)
	}
}

func TestAnotherUsersServerIsNotSpokenTo(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	census(t)
	dir := publicDir(t)
	if _, says := start(t, nobody, "listen", dir); says != fmt.Sprint(error(nil)) {
		t.Fatal(says)
	}
	_, err := Dial(t.Context(), dir)
	var foreign *ForeignError
	if !errors.As(err, &foreign) || foreign.UID != 65534 {
		t.Errorf("%v, want a *ForeignError", err)
	}
}

// TestBindIsNotListen: a socket that is only bound is, for clients, none.
func TestBindIsNotListen(t *testing.T) {
	dir := t.TempDir()
	s, err := Bind(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(t.Context(), dir); !errors.Is(err, ErrNoSupervisor) {
		t.Errorf("dialling what is only bound: %v", err)
	}
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	c, err := Dial(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	other, err := Bind(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v are left", left, err)
	}
}
