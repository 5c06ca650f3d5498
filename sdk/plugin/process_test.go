package plugin_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/client"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/handshake"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

var update = flag.Bool("update", false, "write the golden files")

func TestHandshakeSurvivesNoise(t *testing.T) {
	h := start(t, "noisy")
	info, err := h.Info(soon(t), "0", nil)
	if err != nil || info.Name != "fake" {
		t.Fatalf("got %+v, %v", info, err)
	}
	h.proc.Kill() // the buffer is the client's until it has ended
	for _, want := range []string{"noise of an init function", "noise of main", "noise by number", "noise for ever"} {
		if !strings.Contains(h.stderr.String(), want) {
			t.Errorf("%q is not in the log, where the host would look for it", want)
		}
	}
}

func TestStartedByHand(t *testing.T) {
	for _, tc := range []struct {
		name   string
		role   string
		env    []string
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{"without a flag it says what it is", "plain", nil, nil, 1, "", "this is a Nucleus plugin, which nucleus starts by itself; try: nucleus plugin check "},
		{"with a wrong cookie, too", "plain", []string{handshake.EnvCookie + "=x"}, nil, 1, "", "this is a Nucleus plugin"},
		{"an unknown flag", "plain", nil, []string{"--help"}, 1, "", "flags: --version, --schema"},
		{"its version", "plain", nil, []string{"--version"}, 0, "fake 1.2.3 (sdk 0.1.0)\n", ""},
		{"a plugin that serves nothing", "broken", nil, nil, 1, "", "nucleus plugin fake: error: it serves nothing"},
		{"a lifeline that is none", "plain", []string{handshake.EnvCookie + "=" + handshake.Config().MagicCookieValue, handshake.EnvLifelineFD + "=99"}, nil, 1, "", `NUCLEUS_LIFELINE_FD="99" is no open descriptor`},
		{"a side channel that is none", "plain", []string{handshake.EnvCookie + "=" + handshake.Config().MagicCookieValue, handshake.EnvDescriptorsFD + "=99"}, nil, 1, "", `NUCLEUS_DESCRIPTORS_FD="99" is no open descriptor`},
		{"a user that is none", "plain", []string{handshake.EnvCookie + "=" + handshake.Config().MagicCookieValue, handshake.EnvPeerUID + "=me"}, nil, 1, "", `NUCLEUS_PEER_UID="me" is no user id`},
		{"AutoMTLS", "plain", []string{handshake.EnvCookie + "=" + handshake.Config().MagicCookieValue, "PLUGIN_CLIENT_CERT=x"}, nil, 1, "", "the host wants AutoMTLS"},
		{"a socket path that is too long", "plain", []string{handshake.EnvCookie + "=" + handshake.Config().MagicCookieValue, handshake.EnvSocketDir + "=/tmp/" + strings.Repeat("x", 100)}, nil, 1, "", "and the kernel takes 107"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := command(t, tc.role, tc.env...)
			cmd.Args = append(cmd.Args, tc.args...)
			var out, errOut bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &errOut
			err := cmd.Run()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if code := cmd.ProcessState.ExitCode(); code != tc.code {
				t.Errorf("exit status %d, want %d", code, tc.code)
			}
			if out.String() != tc.stdout || !strings.Contains(errOut.String(), tc.stderr) {
				t.Errorf("stdout %q, stderr %q", out.String(), errOut.String())
			}
		})
	}
}

func TestSchemaIsPrinted(t *testing.T) {
	cmd := command(t, "plain")
	cmd.Args = append(cmd.Args, "--schema")
	got, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "schema.json")
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}

	// The same over the wire, and read back from JSON.
	h := start(t, "plain")
	s, err := h.ConfigSchema(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	wire, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if string(wire)+"\n" != string(want) {
		t.Errorf("over the wire\n%s\nwant\n%s", wire, want)
	}
	var back config.Schema
	if err := json.Unmarshal(want, &back); err != nil {
		t.Fatal(err)
	}
	if !back.Instance["secrets"].Type().Equals(s.Instance["secrets"].Type()) {
		t.Error("read back from JSON it has another type")
	}
}

func TestGoneWithItsHost(t *testing.T) {
	for _, tc := range []struct {
		name string
		busy bool
	}{{"idle", false}, {"in a call that hangs", true}} {
		t.Run(tc.name, func(t *testing.T) {
			h := start(t, "plain")
			if tc.busy {
				go func() {
					_, _ = h.secrets().Fetch(soon(t), secrets.Call{RequestID: "1"}, []secrets.Ref{{Name: "hang"}})
				}()
				eventually(t, "the call", func() bool { return len(h.count(t)) == 1 })
			}
			h.lifeline.Close()
			eventually(t, "the end of the plugin", h.proc.Exited)
			if _, err := os.Lstat(h.socket); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the socket is still there: %v", err)
			}
		})
	}
}

func TestEndsWhenAsked(t *testing.T) {
	for _, tc := range []struct {
		name string
		ask  func(t *testing.T, h *host)
	}{
		{"by Shutdown", func(t *testing.T, h *host) {
			if err := h.Shutdown(soon(t)); err != nil {
				t.Error(err)
			}
		}},
		{"by SIGTERM", func(t *testing.T, h *host) {
			if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := start(t, "plain")
			// A call at work gets its answer.
			done := make(chan error, 1)
			go func() {
				_, err := h.secrets().Fetch(soon(t), secrets.Call{RequestID: "1"}, []secrets.Ref{{Name: "busy"}})
				done <- err
			}()
			eventually(t, "the call at work", func() bool { return len(h.count(t)) == 1 })
			tc.ask(t, h)
			if err := <-done; err != nil {
				t.Errorf("the call at work: %v", err)
			}
			eventually(t, "the end of the plugin", h.proc.Exited)
			if _, err := os.Lstat(h.socket); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the socket is still there: %v", err)
			}
		})
	}
}

func TestClosesOnceAfterTheLastCall(t *testing.T) {
	for _, role := range []string{"closing", "closing for ever", "panicking at the close"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			h := start(t, role)
			if _, err := fetch(t, h, "long", "long"); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() {
				_, err := h.secrets().Fetch(soon(t), secrets.Call{RequestID: "busy"}, []secrets.Ref{{Name: "busy"}})
				done <- err
			}()
			eventually(t, "the call at work", func() bool { return len(h.count(t)) == 1 })
			for range 2 {
				_ = h.Shutdown(soon(t)) // the second may find nobody
			}
			if err := <-done; err != nil {
				t.Errorf("the call at work: %v", err)
			}
			eventually(t, "the end of the plugin", h.proc.Exited)
			if got := h.count(t); !slices.Equal(got, []string{"busy", "close"}) {
				t.Errorf("effects: %q", got)
			}
			if s := h.stderr.String(); !strings.Contains(s, "closing") || strings.Contains(s, strings.TrimSpace(longSecret)) {
				t.Errorf("the log: %s", s)
			}
		})
	}
}

func TestDoesNotCloseWhenItsHostIsGone(t *testing.T) {
	h := start(t, "closing")
	h.lifeline.Close()
	eventually(t, "the end of the plugin", h.proc.Exited)
	if got := h.count(t); len(got) > 0 {
		t.Errorf("effects: %q", got)
	}
}

func TestInterruptIsTheHosts(t *testing.T) {
	h := start(t, "plain")
	if err := h.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	// Long enough for a plugin that would end to be gone.
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := h.Health(soon(t)); err != nil {
			t.Fatalf("after an interrupt: %v", err)
		}
	}
}

func TestAnotherProcessIsRefused(t *testing.T) {
	for _, tc := range []struct{ name, role, want string }{
		{"by a plugin for one run", "plain", "refused"},
		{"but not by one that may be kept", "warm", "served"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := start(t, tc.role)
			cmd := command(t, "dial")
			cmd.Args = append(cmd.Args, h.socket)
			got, err := cmd.Output()
			if err != nil || string(got) != tc.want {
				t.Errorf("another process: %q, %v; want %q", got, err, tc.want)
			}
			if got := answer(h.socket); got != "served" {
				t.Errorf("its host: %q", got)
			}
		})
	}
}

func TestAnotherUserIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user") //nolint:forbidigo // testutil is of another module
	}
	const nobody = 65534
	for _, tc := range []struct {
		name string
		env  []string
		want string
	}{
		{"unless it is the host's", nil, "refused"},
		{"and the host's is served", []string{handshake.EnvPeerUID + "=65534"}, "served"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := start(t, "plain", tc.env...)
			// The modes would refuse it, too, and are not what is tested.
			for path, mode := range map[string]os.FileMode{filepath.Dir(h.socket): 0o711, h.socket: 0o666} {
				if err := os.Chmod(path, mode); err != nil {
					t.Fatal(err)
				}
			}
			got := make(chan string)
			go func() {
				// This thread ends with the goroutine, and its user with it.
				runtime.LockOSThread()
				if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
					got <- errno.Error()
					return
				}
				got <- answerOnThisThread(h.socket)
			}()
			if g := <-got; g != tc.want {
				t.Errorf("got %q, want %q", g, tc.want)
			}
		})
	}
}

// answerOnThisThread is answer without a goroutine that the runtime could move.
func answerOnThisThread(path string) string {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err.Error()
	}
	defer syscall.Close(fd)
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Sec: 5}); err != nil {
		return err.Error()
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		return err.Error()
	}
	switch n, err := syscall.Read(fd, make([]byte, 1)); {
	case n > 0:
		return "served"
	case n == 0 || errors.Is(err, syscall.ECONNRESET):
		return "refused"
	default:
		return err.Error()
	}
}

func TestHostRefusesAnotherPlugin(t *testing.T) {
	h := start(t, "warm")
	conn, err := grpc.NewClient("unix:"+h.socket, grpc.WithTransportCredentials(handshake.Credentials(handshake.Only(func() (int, uint32) {
		return h.cmd.Process.Pid + 1, uint32(os.Geteuid())
	}))))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := client.New(conn).Info(soon(t), "0", nil); err == nil || !strings.Contains(err.Error(), "not the expected process") {
		t.Errorf("got %v", err)
	}
}

func TestChildrenInheritNothing(t *testing.T) {
	h := start(t, "plain")
	got, err := h.secrets().Fetch(soon(t), secrets.Call{RequestID: "1"}, []secrets.Ref{{Name: "child"}})
	if err != nil {
		t.Fatal(err)
	}
	out := string(got[0].Value)
	for _, bad := range []string{handshake.EnvCookie, handshake.EnvLifelineFD, handshake.EnvDescriptorsFD, " 4 ->", " 5 ->", " 6 ->", "socket:"} {
		if strings.Contains(out, bad) {
			t.Errorf("a child has %q:\n%s", bad, out)
		}
	}
}

func TestSecretsProcessIsNotDumpable(t *testing.T) {
	h := start(t, "plain")
	got, err := h.secrets().Fetch(soon(t), secrets.Call{RequestID: "1"}, []secrets.Ref{{Name: "dumpable"}})
	if err != nil || string(got[0].Value) != "0" {
		t.Errorf("PR_GET_DUMPABLE: %v, %v", got, err)
	}
}

func TestSocketIsPrivate(t *testing.T) {
	h := start(t, "plain")
	st, err := os.Stat(h.socket)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		t.Errorf("mode %v", st.Mode())
	}
}

func TestDebugCanBeAttached(t *testing.T) {
	cmd := command(t, "plain", "TMPDIR="+socketDir(t))
	cmd.Args = append(cmd.Args, "--debug")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	value, ok := strings.CutPrefix(strings.TrimSpace(line), handshake.EnvReattach+"='")
	if !ok {
		t.Fatalf("printed %q", line)
	}
	m, err := handshake.ParseReattach(strings.TrimSuffix(value, "'"))
	if err != nil || m["fake"].Pid != cmd.Process.Pid {
		t.Fatalf("got %+v, %v", m, err)
	}
	c := goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig: handshake.Config(), Plugins: client.PluginSet(), Reattach: m["fake"].GoPlugin(), Logger: hclog.NewNullLogger(),
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		GRPCDialOptions: []grpc.DialOption{grpc.WithTransportCredentials(handshake.Credentials(handshake.Only(func() (int, uint32) {
			return m["fake"].Pid, uint32(os.Geteuid())
		})))},
	})
	rpc, err := c.Client()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := rpc.Dispense(handshake.PluginName)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := raw.(*client.Client).Info(soon(t), "0", nil); err != nil || info.Version != "1.2.3" {
		t.Errorf("got %+v, %v", info, err)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after an interrupt by hand: %v", err)
	}
	if _, err := os.Lstat(filepath.Dir(m["fake"].Addr)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket's directory is still there: %v", err)
	}
}
