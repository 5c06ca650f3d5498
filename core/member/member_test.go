package member_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/member"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/network/egress"
	wire "github.com/nucleus-runtime/nucleus/sdk/network/member"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/descriptors"
)

// stack is what a Dial reaches, and what it was asked for.
type stack struct {
	mu    sync.Mutex
	asked []wire.Request
	err   error
	block chan struct{} // waited for, if not nil
	told  []string

	denials []network.Denial
}

func (s *stack) dial(ctx context.Context, q wire.Request) (wire.Families, *os.File, error) {
	s.mu.Lock()
	s.asked = append(s.asked, q)
	err, block := s.err, s.block
	s.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return 0, nil, ctx.Err()
		}
	}
	if err != nil || q.Protocol == wire.None {
		return wire.V4, nil, err
	}
	r, w, err := os.Pipe()
	if err == nil {
		_ = w.Close()
	}
	return wire.V4, r, err
}

// seen is what it was asked for, and told, so far.
func (s *stack) seen() (asked []wire.Request, told []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked), slices.Clone(s.told)
}

func (s *stack) failed(job string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = append(s.told, job+": "+err.Error())
}

func (s *stack) denied(d network.Denial) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denials = append(s.denials, d)
}

// broker gives the plugin's end. One rule has two ports of one job.
func broker(t *testing.T, s *stack) (*os.File, *member.Broker) {
	t.Helper()
	p, err := egress.New(network.Egress{Allow: []network.Rule{
		{Jobs: []string{"db"}, Ports: []network.Ports{{Protocol: "tcp", First: 5432, Last: 5432}, {Protocol: "udp", First: 53, Last: 53}}},
		{Names: []string{"cache"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	b, theirs, err := member.New(p, s.dial, member.Tell{Failed: s.failed, Denied: s.denied})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	t.Cleanup(func() { theirs.Close() })
	return theirs, b
}

func plugin(t *testing.T, f *os.File) *net.UnixConn {
	t.Helper()
	c, err := descriptors.Conn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ask asks as a plugin that keeps to nothing.
func ask(t *testing.T, c *net.UnixConn, q wire.Request) (wire.Answer, *os.File) {
	t.Helper()
	if _, err := c.Write(q.Encode()); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b, f, err := wire.Receive(c, wire.AnswerSize)
	if err != nil {
		t.Fatal(err)
	}
	a, err := wire.DecodeAnswer(b)
	if err != nil || a.ID != q.ID {
		t.Fatalf("%+v, %v", a, err)
	}
	return a, f
}

func TestRulesHoldWhateverThePluginAsksFor(t *testing.T) {
	s := &stack{}
	f, _ := broker(t, s)
	c := plugin(t, f)
	var allowed []wire.Request
	for i, x := range []struct {
		q     wire.Request
		allow bool
	}{
		{wire.Request{Job: "db"}, true},
		{wire.Request{Job: "db", Protocol: wire.TCP, Family: wire.V4, Port: 5432}, true},
		{wire.Request{Job: "db", Protocol: wire.UDP, Family: wire.V6, Port: 53}, true},
		{wire.Request{Job: "db", Protocol: wire.TCP, Family: wire.V4, Port: 5433}, false},
		{wire.Request{Job: "db", Protocol: wire.UDP, Family: wire.V4, Port: 5432}, false},
		{wire.Request{Job: "db", Protocol: wire.TCP, Family: wire.V4, Port: 53}, false},
		{wire.Request{Job: "web"}, false},
		{wire.Request{Job: "web", Protocol: wire.TCP, Family: wire.V4, Port: 5432}, false},
		{wire.Request{Job: "cache", Protocol: wire.TCP, Family: wire.V4, Port: 5432}, false}, // a name, and no job
	} {
		x.q.ID = uint32(i)
		a, file := ask(t, c, x.q)
		want := wire.Answer{ID: x.q.ID, Outcome: wire.Refused}
		if x.allow {
			want.Outcome, want.Families = wire.Done, wire.V4
			allowed = append(allowed, x.q)
		}
		if a != want || (file != nil) != (x.allow && x.q.Protocol != wire.None) {
			t.Errorf("%+v: %+v with a socket: %t, want %+v", x.q, a, file != nil, want)
		}
		if file != nil {
			file.Close()
		}
	}
	if asked, _ := s.seen(); !slices.Equal(asked, allowed) {
		t.Errorf("asked for %+v, want %+v", asked, allowed)
	}
}

func TestOutcomes(t *testing.T) {
	for _, x := range []struct {
		err  error
		want wire.Answer
		told bool
	}{
		{wire.ErrAbsent, wire.Answer{Outcome: wire.Absent}, false},
		{os.NewSyscallError("connect", syscall.ECONNREFUSED), wire.Answer{Outcome: wire.Failed, Errno: uint16(syscall.ECONNREFUSED)}, false},
		{errors.New("no supervisor of this version"), wire.Answer{Outcome: wire.Absent}, true},
	} {
		s := &stack{err: x.err}
		f, b := broker(t, s)
		a, file := ask(t, plugin(t, f), wire.Request{Job: "db", Protocol: wire.TCP, Family: wire.V4, Port: 5432})
		b.Close()
		if _, told := s.seen(); a != x.want || file != nil || (len(told) > 0) != x.told {
			t.Errorf("%v: %+v, want %+v; told: %q", x.err, a, x.want, told)
		}
	}
}

// What is no request cuts the plugin off, and leaves no descriptor of what it sent.
func TestGarbageCutsThePluginOff(t *testing.T) {
	good := wire.Request{Job: "db"}.Encode()
	version := slices.Clone(good)
	version[0] = 2
	protocol := wire.Request{Job: "db", Protocol: 3, Family: wire.V4, Port: 1}.Encode()
	for name, data := range map[string][]byte{
		"a byte": {1}, "too long": bytes.Repeat([]byte{1}, 4096), "cut": good[:len(good)-1], "another version": version, "another protocol": protocol,
		"both families": wire.Request{Job: "db", Protocol: wire.TCP, Family: wire.V4 | wire.V6, Port: 1}.Encode(),
		"no port":       wire.Request{Job: "db", Protocol: wire.TCP, Family: wire.V4}.Encode(),
		"a path":        wire.Request{Job: "../db"}.Encode(),
		"no job":        wire.Request{}.Encode(),
		"a long job":    wire.Request{Job: string(bytes.Repeat([]byte("a"), 64))}.Encode(),
	} {
		s := &stack{}
		f, b := broker(t, s)
		c := plugin(t, f)
		if _, err := c.Write(data); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := c.Read(make([]byte, 64)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
		b.Close()
		if asked, told := s.seen(); len(asked) > 0 || len(told) != 1 {
			t.Errorf("%s: asked for %+v, told %q", name, asked, told)
		}
	}
	// Descriptors, which nobody here has a use for. An empty packet looks like the end.
	for _, data := range [][]byte{good, {}} {
		s := &stack{}
		f, _ := broker(t, s)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		oob := unix.UnixRights(int(w.Fd()), int(w.Fd()), int(w.Fd()))
		iov := unix.Iovec{Base: unsafe.SliceData(append(data, 0))}
		iov.SetLen(len(data))
		msg := unix.Msghdr{Iov: &iov, Iovlen: 1, Control: &oob[0], Controllen: uint64(len(oob))}
		// unix.Sendmsg would give an empty packet a byte.
		_, _, errno := unix.Syscall(unix.SYS_SENDMSG, f.Fd(), uintptr(unsafe.Pointer(&msg)), 0)
		w.Close()
		if errno != 0 {
			t.Fatal(errno)
		}
		_ = r.SetReadDeadline(time.Now().Add(2 * time.Second))
		if n, err := r.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a descriptor that came with %d bytes stays open: %v", len(data), err)
		}
	}
}

// A plugin that asks and asks is served so many at a time, one that does not read its
// answers gets no more, and neither holds up the end.
func TestFloodsAreBounded(t *testing.T) {
	s := &stack{block: make(chan struct{})}
	f, b := broker(t, s)
	c := plugin(t, f)
	var sent atomic.Int64
	go func() {
		for i := uint32(0); ; i++ {
			if _, err := c.Write(wire.Request{ID: i, Job: "db", Protocol: wire.TCP, Family: wire.V4, Port: 5432}.Encode()); err != nil {
				return
			}
			sent.Add(1)
		}
	}()
	asked := func() int {
		all, _ := s.seen()
		return len(all)
	}
	still(t, asked)
	if n := asked(); n != wire.MaxRequests {
		t.Errorf("%d requests at a time, want %d", n, wire.MaxRequests)
	}
	close(s.block)
	still(t, asked)
	// The rest of what was answered is on its way, in a socket that holds some packets.
	if n := asked(); n > 4*wire.MaxRequests {
		t.Errorf("%d requests of a plugin that does not read were carried out", n)
	}
	began := time.Now()
	b.Close()
	if took := time.Since(began); took > time.Second {
		t.Errorf("the end took %s", took)
	}
}

// still waits until a count does not change any more.
func still(t *testing.T, count func() int) {
	t.Helper()
	last, since := -1, time.Now()
	for end := time.Now().Add(10 * time.Second); time.Since(since) < 200*time.Millisecond; time.Sleep(5 * time.Millisecond) {
		if n := count(); n != last {
			last, since = n, time.Now()
		}
		if time.Now().After(end) {
			t.Fatal("it goes on")
		}
	}
}

func TestDialerAndBroker(t *testing.T) {
	s := &stack{}
	f, b := broker(t, s)
	d, err := wire.New(f)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			file, err := d.Dial(t.Context(), wire.TCP, wire.V4, "db", 5432)
			if err != nil {
				t.Error(err)
				return
			}
			file.Close()
			if _, err := d.Dial(t.Context(), wire.TCP, wire.V4, "db", 1); !errors.Is(err, wire.ErrRefused) {
				t.Error(err)
			}
			if has, err := d.Look(t.Context(), "db"); err != nil || has != wire.V4 {
				t.Error(has, err)
			}
		})
	}
	wg.Wait()
	// Who does not wait any more gets nothing, and what comes for it is closed.
	s.mu.Lock()
	s.block = make(chan struct{})
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	before := held(t)
	if _, err := d.Dial(ctx, wire.TCP, wire.V4, "db", 5432); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	close(s.block)
	if has, err := d.Look(t.Context(), "db"); err != nil || has != wire.V4 {
		t.Error(has, err)
	}
	for end := time.Now().Add(5 * time.Second); held(t) > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d descriptors, before %d", held(t), before)
		}
	}
	b.Close()
	if _, err := d.Look(t.Context(), "db"); err == nil {
		t.Error("asked after the end")
	}
}

func held(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}
