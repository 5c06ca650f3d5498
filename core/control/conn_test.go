package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

func TestDescriptorsTravelBothWays(t *testing.T) {
	_, dir := serve(t, echo)
	c := connected(t, dir)
	r, w := pipe(t)
	if err := c.Send("echo", map[string]int{"n": 7}, w, r); err != nil {
		t.Fatal(err)
	}
	if descriptor(t, w, unix.F_GETFL)&unix.O_NONBLOCK == 0 {
		t.Error("sending made the pipe block for all who share it")
	}
	w.Close()
	m, files, err := c.Recv()
	if err != nil || m.Kind != KindOK || string(m.Body) != `{"n":7}` || len(files) != 2 {
		t.Fatalf("%+v, %d descriptors, %v", m, len(files), err)
	}
	defer CloseAll(files)
	for i, f := range files {
		if descriptor(t, f, unix.F_GETFD)&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d would survive exec", i)
		}
	}
	if _, err := files[0].WriteString("through"); err != nil {
		t.Fatal(err)
	}
	files[0].Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "through" {
		t.Errorf("%q, %v", b, err)
	}
	if _, _, err := c.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the answer: %v, want the end", err)
	}
}

func TestHandlerKeepsTheDescriptorsItTakes(t *testing.T) {
	kept := make(chan *os.File, 1)
	_, dir := serve(t, func(_ context.Context, c *Conn, _ Message, fds []*os.File) {
		if descriptor(t, fds[0], unix.F_GETFD)&unix.FD_CLOEXEC == 0 {
			t.Error("the descriptor would survive exec")
		}
		kept <- fds[0]
		fds[0] = nil
		_ = c.Send(KindOK, nil) // the call fails without it
	})
	r, w := pipe(t)
	if err := connected(t, dir).Call(t.Context(), "attach", nil, nil, w, w); err != nil {
		t.Fatal(err)
	}
	w.Close()
	mine := <-kept
	if _, err := mine.WriteString("late"); err != nil {
		t.Fatal(err)
	}
	mine.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "late" {
		t.Errorf("%q, %v (the second one must be closed)", b, err)
	}
}

func TestPeersKnowEachOther(t *testing.T) {
	_, dir := serve(t, func(_ context.Context, c *Conn, _ Message, _ []*os.File) {
		pid, uid, gid := c.Peer()
		_ = c.Send(KindOK, []int{pid, uid, gid}) // the call fails without it
	})
	c := connected(t, dir)
	var got []int
	if err := c.Call(t.Context(), "who", nil, &got); err != nil {
		t.Fatal(err)
	}
	pid, uid, gid := c.Peer()
	if len(got) != 3 || got[0] != os.Getpid() || got[1] != os.Geteuid() || got[2] != os.Getegid() || pid != got[0] || uid != got[1] || gid != got[2] {
		t.Errorf("server saw %v, client %d %d %d", got, pid, uid, gid)
	}
}

func TestCallGivesWhatTheServerAnswers(t *testing.T) {
	_, dir := serve(t, func(_ context.Context, c *Conn, m Message, _ []*os.File) {
		r, w := pipe(t)
		_ = w
		switch m.Kind {
		case "typed":
			_ = c.Fail(&Error{Code: CodeState, Text: "not running", Hint: "nucleus start"})
		case "plain":
			_ = c.Fail(errors.New("disk on fire"))
		case "hinted":
			_ = c.Fail(hinted{})
		case "event":
			_ = c.Send("exited", nil)
		case "extra":
			_ = c.Send(KindOK, map[string]int{"n": 1}, r) // a descriptor that nobody asked for
		case "strange":
			_ = c.sendBytes([]byte(`{"v":1,"kind":"ok","kind":"ok"}`), nil)
		}
	})
	call := func(kind string) error {
		return connected(t, dir).Call(t.Context(), kind, nil, nil)
	}
	if e := wantCode(t, call("typed"), CodeState); e.Text != "not running" || e.Hint != "nucleus start" {
		t.Errorf("%+v", e)
	}
	if e := wantCode(t, call("plain"), CodeFailed); e.Error() != "disk on fire" {
		t.Errorf("%+v", e)
	}
	if e := wantCode(t, call("hinted"), CodeFailed); e.Hint != "df" {
		t.Errorf("%+v", e)
	}
	wantCode(t, call("event"), CodeVersion)
	wantCode(t, call("strange"), CodeBadRequest)
	if err := call("nothing"); !errors.Is(err, ErrGone) {
		t.Errorf("no answer: %v", err)
	}
	if err := call("extra"); err != nil {
		t.Error(err)
	}
	var other struct {
		M int `json:"m"`
	}
	wantCode(t, connected(t, dir).Call(t.Context(), "extra", nil, &other), CodeVersion)
}

type hinted struct{}

func (hinted) Error() string  { return "full" }
func (hinted) Remedy() string { return "df" }

func TestCallEndsWithItsContextAndSoDoesTheRequest(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan struct{})
	_, dir := serve(t, func(ctx context.Context, _ *Conn, _ Message, _ []*os.File) {
		close(begun)
		<-ctx.Done()
		close(ended)
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-begun
		cancel()
	}()
	if err := connected(t, dir).Call(ctx, "wait", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want the context's error", err)
	}
	soon(t, ended, "the handler's end")
}

func TestNothingIsSentThatCannotBe(t *testing.T) {
	_, dir := serve(t, echo)
	c := connected(t, dir)
	var large *TooLargeError
	if err := c.Send("echo", strings.Repeat("a", MaxMessage)); !errors.As(err, &large) {
		t.Errorf("too large: %v", err)
	}
	r, _ := pipe(t)
	many := make([]*os.File, MaxFDs+1)
	for i := range many {
		many[i] = r
	}
	if err := c.Send("echo", nil, many...); err == nil {
		t.Error("nine descriptors were sent")
	}
	if err := c.Send("echo", nil, nil, r); err == nil {
		t.Error("a nil descriptor was sent")
	}
	small := connected(t, dir)
	if err := small.raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 4096) }); err != nil {
		t.Fatal(err)
	}
	if err := small.Send("echo", strings.Repeat("a", 64<<10)); !errors.As(err, &large) || large.Max != 8192 {
		t.Errorf("a host with small buffers: %v", err)
	}
	// The connection is as it was, and takes the most that there can be.
	var got string
	most := strings.Repeat("a", MaxMessage-len(`{"v":1,"kind":"echo","body":""}`))
	if err := c.Call(t.Context(), "echo", most, &got, many[:MaxFDs]...); err != nil || got != most {
		t.Errorf("%d bytes back, %v", len(got), err)
	}
}

func TestBothSidesMaySendMore(t *testing.T) {
	_, dir := serve(t, func(_ context.Context, c *Conn, _ Message, _ []*os.File) {
		_ = c.Send("started", nil)
		for {
			m, _, err := c.Recv()
			if err != nil || m.Kind == "close" {
				break
			}
			_ = c.Send("seen", m.Body)
		}
		_ = c.Send("exited", map[string]int{"code": 3})
	})
	c := connected(t, dir)
	if err := c.Send("exec", nil); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"signal", "resize", "close"} {
		if err := c.Send(kind, kind); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{`started `, `seen "signal"`, `seen "resize"`, `exited {"code":3}`} {
		m, _, err := c.Recv()
		if got := m.Kind + " " + string(m.Body); err != nil || got != want {
			t.Errorf("%s, %v, want %s", got, err, want)
		}
	}
}

func TestCloseWakesReceivers(t *testing.T) {
	_, dir := serve(t, func(ctx context.Context, _ *Conn, _ Message, _ []*os.File) { <-ctx.Done() })
	c := connected(t, dir)
	if err := c.Send("wait", nil); err != nil {
		t.Fatal(err)
	}
	received := make(chan error, 1)
	go func() {
		_, _, err := c.Recv()
		received <- err
	}()
	time.Sleep(10 * time.Millisecond) // most likely it waits by now, and either way must end
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-received:
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%v", err)
		}
	case <-time.After(testutil.Patient(5 * time.Second)):
		t.Fatal("still waiting")
	}
	if err := c.Send("x", nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("sending after Close: %v", err)
	}
}

func TestServerThatStopsReadingDoesNotHoldAClient(t *testing.T) {
	release := make(chan struct{})
	_, dir := serve(t, func(_ context.Context, _ *Conn, _ Message, _ []*os.File) { <-release })
	defer close(release)
	c := connected(t, dir)
	c.sendLimit = 50 * time.Millisecond
	var err error
	for i := 0; err == nil && i < 100; i++ {
		err = c.Send("fill", json.RawMessage(`"`+strings.Repeat("a", 64<<10)+`"`))
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, want a deadline", err)
	}
}
