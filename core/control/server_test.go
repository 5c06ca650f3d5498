package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// wantRefusal expects an error answer and then nothing more.
func wantRefusal(t *testing.T, c *Conn, code, says string) {
	t.Helper()
	m, files, err := c.Recv()
	if err != nil || len(files) != 0 {
		t.Fatalf("no answer: %v, %d descriptors", err, len(files))
	}
	if e := wantCode(t, m.Err(), code); !strings.Contains(e.Text, says) {
		t.Errorf("%q does not say %q", e.Text, says)
	}
	if _, _, err := c.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the refusal: %v, want the end", err)
	}
}

func repeated(fd *os.File, n int) []*os.File {
	files := make([]*os.File, n)
	for i := range files {
		files[i] = fd
	}
	return files
}

func TestBadRequestsAreAnsweredAndLeaveNothing(t *testing.T) {
	type request struct {
		name, wire string
		fds        int
		code, says string
	}
	var requests []request
	for _, bad := range badMessages {
		requests = append(requests, request{bad.name, bad.wire, 2, bad.code, bad.says})
	}
	good := `{"v":1,"kind":"echo","body":""}`
	requests = append(
		requests,
		request{"an error as a request of a later version", `{"v":2,"kind":"error"}`, 2, CodeVersion, "version 2"},
		request{"empty", "", 0, CodeBadRequest, "empty"},
		request{"one byte too large", strings.Replace(good, `""`, `"`+strings.Repeat("a", MaxMessage-len(good)+1)+`"`, 1), 2, CodeBadRequest, "at most 131072"},
		request{"as large as the socket takes", strings.Repeat("a", 200<<10), 2, CodeBadRequest, "204800 bytes"},
		request{"nine descriptors", good, MaxFDs + 1, CodeBadRequest, "more than 8 descriptors"},
		request{"as many as the kernel takes", good, 253, CodeBadRequest, "more than 8 descriptors"},
		request{"everything wrong", strings.Repeat("{", 150<<10), 20, CodeBadRequest, "at most"},
	)
	for _, r := range requests {
		t.Run(r.name, func(t *testing.T) {
			_, dir := serve(t, func(_ context.Context, _ *Conn, m Message, _ []*os.File) { t.Errorf("handled: %+v", m) })
			// The reader sees the end only when no copy of the writer is left.
			left, w := pipe(t)
			oob, err := rightsOf(repeated(w, r.fds))
			if err != nil {
				t.Fatal(err)
			}
			c := connected(t, dir)
			if err := c.sendBytes([]byte(r.wire), oob); err != nil {
				t.Fatal(err)
			}
			w.Close()
			wantRefusal(t, c, r.code, r.says)
			if n, err := left.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("%d, %v: a copy of the descriptor is left", n, err)
			}
		})
	}
}

// A message after the first is the handler's to receive, and no less checked.
func TestBadMessagesWithinARequestEndIt(t *testing.T) {
	got := make(chan error, 1)
	ended := make(chan struct{})
	_, dir := serve(t, func(ctx context.Context, c *Conn, _ Message, _ []*os.File) {
		_, files, err := c.Recv()
		if len(files) != 0 {
			t.Errorf("%d descriptors came with it", len(files))
		}
		got <- err
		<-ctx.Done()
		close(ended)
	})
	c := connected(t, dir)
	if err := c.Send("exec", nil); err != nil {
		t.Fatal(err)
	}
	r, _ := pipe(t)
	oob, err := rightsOf(repeated(r, MaxFDs+3))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.sendBytes([]byte(`{"v":1,"kind":"resize"}`), oob); err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, c, CodeBadRequest, "more than 8")
	wantCode(t, <-got, CodeBadRequest)
	soon(t, ended, "the handler's context")
}

func TestSilentClientIsCutOff(t *testing.T) {
	_, dir := serve(t, echo, func(s *Server) { s.helloLimit = 20 * time.Millisecond })
	c := connected(t, dir)
	wantRefusal(t, c, CodeBadRequest, "no request")
}

func TestHelloLimitIsNotTheRequestsLimit(t *testing.T) {
	_, dir := serve(t, func(_ context.Context, c *Conn, _ Message, _ []*os.File) {
		m, _, err := c.Recv()
		if err != nil {
			t.Error(err)
		}
		_ = c.Send(KindOK, m.Body) // the client misses it
	}, func(s *Server) { s.helloLimit = testutil.Patient(50 * time.Millisecond) })
	c := connected(t, dir)
	if err := c.Send("exec", nil); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * testutil.Patient(50*time.Millisecond))
	if err := c.Call(t.Context(), "late", nil, nil); err != nil {
		t.Error(err)
	}
}

func TestHalfClosedClientGetsItsAnswer(t *testing.T) {
	_, dir := serve(t, func(ctx context.Context, c *Conn, m Message, fds []*os.File) {
		if _, _, err := c.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("%v, want the end of what the client sends", err)
		}
		time.Sleep(10 * time.Millisecond) // time for a watch that errs
		if err := ctx.Err(); err != nil {
			t.Errorf("%v, though the client waits", err)
		}
		echo(ctx, c, m, fds)
	})
	c := connected(t, dir)
	if err := c.Send("echo", "half"); err != nil {
		t.Fatal(err)
	}
	if err := c.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) }); err != nil {
		t.Fatal(err)
	}
	if m, _, err := c.Recv(); err != nil || string(m.Body) != `"half"` {
		t.Errorf("%+v, %v", m, err)
	}

	silent := connected(t, dir)
	if err := silent.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) }); err != nil {
		t.Fatal(err)
	}
	if _, _, err := silent.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("%v, want the end at once: no request can come any more", err)
	}
}

func TestClientThatNeverReadsIsCutOff(t *testing.T) {
	sent, ended := make(chan error, 1), make(chan struct{})
	_, dir := serve(t, func(ctx context.Context, c *Conn, _ Message, _ []*os.File) {
		var err error
		for i := 0; err == nil && i < 100; i++ {
			err = c.Send("log", strings.Repeat("a", 64<<10))
		}
		sent <- err
		<-ctx.Done()
		close(ended)
	}, func(s *Server) { s.sendLimit = 50 * time.Millisecond })
	c := connected(t, dir)
	if err := c.Send("logs", nil); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-sent:
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v, want a deadline", err)
		}
	case <-time.After(testutil.Patient(5 * time.Second)):
		t.Fatal("the server waits for a client that does not read")
	}
	soon(t, ended, "the handler's context")
}

// The client may have filled the socket with messages that nobody receives: its
// end is seen behind them.
func TestEndIsSeenBehindUnreadMessages(t *testing.T) {
	ended := make(chan struct{})
	_, dir := serve(t, func(ctx context.Context, _ *Conn, _ Message, _ []*os.File) {
		<-ctx.Done()
		close(ended)
	})
	c := connected(t, dir)
	for range 20 {
		if err := c.Send("resize", nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	soon(t, ended, "the handler's context")
}

func TestSoManyAreServedAndNoMore(t *testing.T) {
	_, dir := serve(t, func(ctx context.Context, c *Conn, _ Message, _ []*os.File) {
		_ = c.Send("served", nil) // the client counts it
		<-ctx.Done()
	})
	type outcome struct {
		c   *Conn
		m   Message
		err error
	}
	const clients = 300
	outcomes := make(chan outcome, clients)
	for range clients {
		go func() {
			var o outcome
			if o.c, o.err = Dial(t.Context(), dir); o.err == nil {
				if err := o.c.Send("wait", nil); err != nil && !errors.Is(err, ErrGone) {
					o.err = err
				} else {
					o.m, _, o.err = o.c.Recv()
				}
			}
			outcomes <- o
		}()
	}
	served, busy := 0, 0
	var open []*Conn
	for range clients {
		o := <-outcomes
		var e *Error
		switch {
		case o.err != nil:
			t.Error(o.err)
		case o.m.Kind == "served":
			served++
		case errors.As(o.m.Err(), &e) && e.Code == CodeBusy:
			busy++
		default:
			t.Errorf("%+v", o.m)
		}
		if o.c != nil {
			open = append(open, o.c)
		}
	}
	if served != maxConns || busy != clients-maxConns {
		t.Errorf("%d served, %d busy", served, busy)
	}
	// Places come back.
	for _, c := range open {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	end := time.Now().Add(testutil.Patient(5 * time.Second))
	for {
		c := connected(t, dir)
		if err := c.Send("wait", nil); err != nil && !errors.Is(err, ErrGone) {
			t.Fatal(err)
		}
		m, _, err := c.Recv()
		if err == nil && m.Kind == "served" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no place came back: %+v, %v", m, err)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestIdleConnectionsHoldNoThread(t *testing.T) {
	var handling atomic.Int32
	_, dir := serve(t, func(ctx context.Context, _ *Conn, _ Message, _ []*os.File) {
		handling.Add(1)
		<-ctx.Done()
	})
	threads := func() int {
		entries, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := threads()
	const clients = 100
	for i := range clients {
		if c := connected(t, dir); i%2 == 0 {
			if err := c.Send("wait", nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	for end := time.Now().Add(testutil.Patient(5 * time.Second)); handling.Load() < clients/2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d requests are handled", handling.Load())
		}
	}
	if after := threads(); after > before+clients/4 {
		t.Errorf("%d threads before, %d with %d clients", before, after, clients)
	}
}

func TestCloseEndsHandlersAndLetsThemAnswer(t *testing.T) {
	s, dir := serve(t, func(ctx context.Context, c *Conn, m Message, _ []*os.File) {
		if err := c.Send("started", nil); err != nil {
			t.Error(err)
		}
		if m.Kind == "receive" {
			if _, _, err := c.Recv(); !errors.Is(err, os.ErrClosed) {
				t.Errorf("%v, want os.ErrClosed", err)
			}
		}
		<-ctx.Done()
		if _, _, err := c.Recv(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%v, want os.ErrClosed", err)
		}
		_ = c.Send("exited", nil) // the client waits for it
	})
	silent := connected(t, dir)
	var clients []*Conn
	for _, kind := range []string{"receive", "wait"} {
		c := connected(t, dir)
		if err := c.Send(kind, nil); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Recv(); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	for _, c := range clients {
		if m, _, err := c.Recv(); err != nil || m.Kind != "exited" {
			t.Errorf("%+v, %v", m, err)
		}
	}
	if _, _, err := silent.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the silent client: %v, want the end", err)
	}
	if _, err := Dial(t.Context(), dir); !errors.Is(err, ErrNoSupervisor) {
		t.Errorf("%v, want ErrNoSupervisor", err)
	}
}

func TestServeWaitsForItsHandlersWhenItsContextEnds(t *testing.T) {
	census(t)
	dir := shortDir(t)
	s, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	begun, release := make(chan struct{}), make(chan struct{})
	served := make(chan error, 1)
	var done atomic.Bool
	go func() {
		served <- s.Serve(ctx, func(ctx context.Context, _ *Conn, _ Message, _ []*os.File) {
			close(begun)
			<-ctx.Done()
			<-release
			done.Store(true)
		})
	}()
	if err := connected(t, dir).Send("wait", nil); err != nil {
		t.Fatal(err)
	}
	soon(t, begun, "the request")
	cancel()
	select {
	case err := <-served:
		t.Errorf("Serve did not wait (%v)", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(release)
	if err := <-served; err != nil || !done.Load() {
		t.Errorf("%v, handler done: %v", err, done.Load())
	}
	if err := s.Serve(t.Context(), echo); err != nil {
		t.Errorf("serving what is closed: %v", err)
	}
}

// noMoreFiles lets this process open nothing more until the returned function
// is called.
func noMoreFiles(t *testing.T) (restore func()) {
	t.Helper()
	free, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	// The lowest number that was free is taken, and it is the last one allowed.
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(free.Fd()) + 1, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
		free.Close()
	}
}

func TestServerOutlastsALackOfDescriptors(t *testing.T) {
	_, dir := serve(t, echo)
	early := connected(t, dir)
	if err := early.Call(t.Context(), "echo", nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := early.Recv(); !errors.Is(err, io.EOF) { // its server's end is closed
		t.Fatal(err)
	}
	before := len(openFiles(t))
	within := connected(t, dir)
	for end := time.Now().Add(testutil.Patient(5 * time.Second)); len(openFiles(t)) < before+2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not accepted within 5 s")
		}
	}
	late, err := newSocket()
	if err != nil {
		t.Fatal(err)
	}
	r, w := pipe(t)
	oob, err := rightsOf([]*os.File{r, w})
	if err != nil {
		t.Fatal(err)
	}

	restore := noMoreFiles(t)
	// Refused, not handled without the descriptors.
	sent := within.sendBytes([]byte(`{"v":1,"kind":"echo"}`), oob)
	m, _, received := within.Recv()
	connected := unix.Connect(late, &unix.SockaddrUnix{Name: dir + "/" + SocketName})
	time.Sleep(20 * time.Millisecond) // accept fails meanwhile
	restore()

	if err := errors.Join(sent, received, connected); err != nil {
		t.Fatal(err)
	}
	if e := wantCode(t, m.Err(), CodeFailed); !strings.Contains(e.Text, "too many files") {
		t.Error(e.Text)
	}
	c, err := newConn(late, false)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Call(t.Context(), "echo", nil, nil); err != nil {
		t.Errorf("the client that came without descriptors left: %v", err)
	}
}

// FuzzServe sends bytes to a server as they are. Whatever they are, one answer
// comes, then the end, and no descriptor stays.
func FuzzServe(f *testing.F) {
	f.Add([]byte(`{"v":1,"kind":"echo","body":[1,2]}`), uint8(2))
	for i, bad := range badMessages {
		f.Add([]byte(bad.wire), uint8(i))
	}
	_, dir := serve(f, func(ctx context.Context, c *Conn, m Message, fds []*os.File) {
		_ = m.Decode(new(struct{ Args []string }))
		m.Body, _ = json.Marshal(len(m.Body))
		echo(ctx, c, m, fds)
	})
	r, _ := pipe(f)
	f.Fuzz(func(t *testing.T, b []byte, fds uint8) {
		if len(b) > 200<<10 {
			return
		}
		c := connected(t, dir)
		oob, err := rightsOf(repeated(r, int(fds)%200))
		if err == nil {
			err = c.sendBytes(b, oob)
		}
		if err != nil {
			t.Fatal(err)
		}
		m, files, err := c.Recv()
		CloseAll(files)
		if err != nil || m.Kind != KindOK && m.Kind != KindError {
			t.Fatalf("%+v, %v", m, err)
		}
		if e := m.Err(); e != nil && e.Error() == "" {
			t.Fatalf("%+v says nothing", m)
		}
		if _, _, err := c.Recv(); !errors.Is(err, io.EOF) {
			t.Fatalf("%v, want the end", err)
		}
	})
}
