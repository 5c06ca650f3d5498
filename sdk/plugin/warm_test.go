package plugin_test

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/client"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/handshake"
)

// lone is a plugin whose host can go as one that is killed does: with the lifeline,
// and with those who read what it prints.
type lone struct {
	socket string
	pid    int
	gone   chan struct{}
	vanish func(said []byte)
}

func startAlone(t *testing.T, role string, env ...string) *lone {
	t.Helper()
	cmd := command(t, role, append(env, handshake.EnvCookie+"="+handshake.Config().MagicCookieValue, handshake.EnvSocketDir+"="+socketDir(t), handshake.EnvLifelineFD+"=3")...)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{r}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	l := &lone{socket: strings.Split(line, "|")[3], pid: cmd.Process.Pid, gone: make(chan struct{})}
	go func() {
		_, _ = cmd.Process.Wait()
		close(l.gone)
	}()
	l.vanish = func(keep []byte) {
		_, _ = w.Write(keep) // it may have ended
		out.Close()
		said.Close()
		w.Close()
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-l.gone
	})
	return l
}

// connect greets it, as any host of its user may.
func (l *lone) connect(t *testing.T) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("passthrough:///plugin", grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", l.socket)
	}), grpc.WithTransportCredentials(handshake.Credentials(handshake.Only(func() (int, uint32) { return l.pid, uint32(os.Geteuid()) }))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := client.New(c).Health(soon(t)); err != nil {
		t.Fatalf("connecting: %v", err)
	}
	return c
}

func (l *lone) within(d time.Duration) bool {
	select {
	case <-l.gone:
		return true
	case <-time.After(d):
		return false
	}
}

func TestWarmPluginOutlivesItsHost(t *testing.T) {
	for _, role := range []string{"warm", "warm and noisy"} {
		t.Run(role, func(t *testing.T) {
			effects := t.TempDir() + "/effects"
			l := startAlone(t, role, envEffects+"="+effects)
			first := l.connect(t)
			const keep = 500 * time.Millisecond
			l.vanish(handshake.Keep(keep))
			if l.within(2 * keep) {
				t.Fatal("it ended although somebody is connected")
			}
			second := l.connect(t)
			_ = first.Close()
			if h, err := client.New(second).Health(soon(t)); err != nil || h.State != manifest.Degraded {
				t.Fatalf("the second host: %+v, %v", h, err)
			}
			alone := time.Now()
			_ = second.Close()
			if !l.within(10 * time.Second) {
				t.Fatal("it stays for ever")
			}
			if d := time.Since(alone); d < keep {
				t.Errorf("it ended %s after its last host, and was to stay for %s", d, keep)
			}
			if _, err := os.Lstat(l.socket); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("its socket is still there: %v", err)
			}
			if b, err := os.ReadFile(effects); role == "warm" && string(b) != "close\n" {
				t.Errorf("its Close: %q, %v", b, err)
			}
		})
	}
}

// A plugin stays only if it may, and if its host has said so in full.
func TestWarmPluginEndsWithItsHost(t *testing.T) {
	for _, tc := range []struct{ name, role, said string }{
		{"nothing was said", "warm", ""},
		{"it was cut off", "warm", "600000"},
		{"it is no number", "warm", "ten minutes\n"},
		{"it is more than a line", "warm", "600000\n600000\n"},
		{"no time", "warm", "0\n"},
		{"another lifetime", "plain", "600000\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := startAlone(t, tc.role)
			l.connect(t)
			l.vanish([]byte(tc.said))
			if !l.within(10 * time.Second) {
				t.Error("it outlives its host")
			}
		})
	}
}
