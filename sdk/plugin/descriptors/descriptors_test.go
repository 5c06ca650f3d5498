package descriptors

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

func pair(t *testing.T, keepFor time.Duration) (*Sender, *Receiver) {
	t.Helper()
	s, f, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	r, err := receive(f, keepFor)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return s, r
}

func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// pipe gives an end to send, and one that tells when every copy of it is closed.
func pipe(t *testing.T) (send, watch *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return w, r
}

// closed waits until nobody has the other end.
func closed(t *testing.T, watch *os.File) {
	t.Helper()
	if err := watch.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := watch.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a copy of the descriptor is still open: %d, %v", n, err)
	}
}

func TestDescriptorsArrive(t *testing.T) {
	s, r := pair(t, time.Hour)
	a, watchA := pipe(t)
	b, watchB := pipe(t)
	// The later is taken first, and before it is there.
	got := make(chan []*os.File, 1)
	go func() {
		files, err := r.Take(soon(t), "second", []string{"b"})
		if err != nil {
			t.Error(err)
		}
		got <- files
	}()
	for tag, files := range map[string][]*os.File{"first": {a, b}, "second": {b}} {
		if err := s.Send(soon(t), tag, files); err != nil {
			t.Fatal(err)
		}
	}
	first, err := r.Take(soon(t), "first", []string{"a", "b"})
	if err != nil {
		t.Fatal(err)
	}
	second := <-got
	if len(first) != 2 || len(second) != 1 || first[0].Name() != "a" || second[0].Name() != "b" {
		t.Fatalf("got %v and %v", first, second)
	}
	for i, f := range append(first, second...) {
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, f.Fd(), syscall.F_GETFD, 0)
		if errno != 0 || flags&syscall.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d would be inherited: %#x, %v", i, flags, errno)
		}
		fmt.Fprint(f, i)
		f.Close()
	}
	a.Close()
	b.Close()
	for want, watch := range map[string]*os.File{"0": watchA, "12": watchB} {
		buf := make([]byte, 9)
		n, err := watch.Read(buf)
		if err != nil || string(buf[:n]) != want {
			t.Errorf("got %q, %v, want %q", buf[:n], err, want)
		}
		closed(t, watch)
	}
}

func TestWhatNobodyTakesIsClosed(t *testing.T) {
	for _, tc := range []struct {
		name string
		keep time.Duration
		then func(t *testing.T, s *Sender, r *Receiver)
	}{
		{"after a time", time.Millisecond, func(*testing.T, *Sender, *Receiver) {}},
		{"for a later try of the same request", time.Hour, func(t *testing.T, s *Sender, _ *Receiver) {
			other, _ := pipe(t)
			if err := s.Send(soon(t), "tag", []*os.File{other}); err != nil {
				t.Error(err)
			}
		}},
		{"for too many others", time.Hour, func(t *testing.T, s *Sender, _ *Receiver) {
			for i := range keepAll {
				other, _ := pipe(t)
				if err := s.Send(soon(t), fmt.Sprint(i), []*os.File{other}); err != nil {
					t.Fatal(err)
				}
			}
		}},
		{"at the end", time.Hour, func(t *testing.T, s *Sender, r *Receiver) {
			s.Close()
			<-r.done
			r.Close()
		}},
		{"where another number was to come", time.Hour, func(t *testing.T, _ *Sender, r *Receiver) {
			_, err := r.Take(soon(t), "tag", []string{"a", "b"})
			if err == nil || !strings.Contains(err.Error(), `2 descriptors were to come under "tag", and 1 came`) {
				t.Errorf("got %v", err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, r := pair(t, tc.keep)
			w, watch := pipe(t)
			if err := s.Send(soon(t), "tag", []*os.File{w}); err != nil {
				t.Fatal(err)
			}
			w.Close()
			tc.then(t, s, r)
			closed(t, watch)
		})
	}
}

func TestMessagesOfOthersAreChecked(t *testing.T) {
	w, _ := pipe(t)
	rights := func(n int) []byte {
		var fds []int
		for range n {
			fds = append(fds, int(w.Fd()))
		}
		return syscall.UnixRights(fds...)
	}
	for _, tc := range []struct {
		name string
		msg  []byte
		oob  []byte
		want string // "" for a message that nobody will find
	}{
		{"too many", append([]byte{form, 251}, "tag"...), rights(251), "of the host's 251 descriptors 250 arrived"},
		{"fewer than it says", append([]byte{form, 2}, "tag"...), rights(1), "of the host's 2 descriptors 1 arrived"},
		{"another form", append([]byte{9, 1}, "tag"...), rights(1), "in the form 9"},
		{"no tag", []byte{form, 1}, rights(1), ""},
		{"a tag that is too long", append([]byte{form, 1}, strings.Repeat("x", 200)...), rights(1), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, r := pair(t, time.Hour)
			if _, _, err := s.conn.WriteMsgUnix(tc.msg, tc.oob, nil); err != nil {
				t.Fatal(err)
			}
			// What comes after it is no worse for it.
			if err := s.Send(soon(t), "next", []*os.File{w}); err != nil {
				t.Fatal(err)
			}
			next, err := r.Take(soon(t), "next", []string{"a"})
			if err != nil {
				t.Fatal(err)
			}
			next[0].Close()
			if tc.want == "" {
				if len(r.parcels) != 0 {
					t.Errorf("it was kept: %+v", r.parcels)
				}
				return
			}
			if _, err := r.Take(soon(t), "tag", nil); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestAnEndThatIsGone(t *testing.T) {
	t.Run("the host's", func(t *testing.T) {
		s, r := pair(t, time.Hour)
		w, _ := pipe(t)
		if err := s.Send(soon(t), "tag", []*os.File{w}); err != nil {
			t.Fatal(err)
		}
		s.Close()
		files, err := r.Take(soon(t), "tag", []string{"a"})
		if err != nil {
			t.Fatalf("what was sent before: %v", err)
		}
		files[0].Close()
		if _, err := r.Take(soon(t), "other", []string{"a"}); !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("the plugin's", func(t *testing.T) {
		s, r := pair(t, time.Hour)
		w, _ := pipe(t)
		r.Close()
		if err := s.Send(soon(t), "tag", []*os.File{w}); !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
	})
}

func TestNobodyWaitsForEver(t *testing.T) {
	gone := errors.New("the caller is gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	t.Run("the plugin", func(t *testing.T) {
		_, r := pair(t, time.Hour)
		if _, err := r.Take(ctx, "tag", []string{"a"}); !errors.Is(err, gone) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("the host, when nobody reads", func(t *testing.T) {
		s, f, err := Pair()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		defer f.Close()
		w, _ := pipe(t)
		full, cancel := context.WithCancel(soon(t))
		// Long enough for the buffer to be full, so that there is something to wait for.
		time.AfterFunc(200*time.Millisecond, cancel)
		for err == nil {
			err = s.Send(full, "tag", []*os.File{w})
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		// Another may try, and waits no longer than it wants to.
		late, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := s.Send(late, "tag", []*os.File{w}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestSendsWhatCanBeSent(t *testing.T) {
	s, _ := pair(t, time.Hour)
	w, _ := pipe(t)
	for _, tc := range []struct {
		name  string
		tag   string
		files int
	}{{"no tag", "", 1}, {"a long tag", strings.Repeat("x", MaxTag+1), 1}, {"nothing", "tag", 0}, {"too much", "tag", MaxFiles + 1}} {
		files := make([]*os.File, tc.files)
		for i := range files {
			files[i] = w
		}
		if err := s.Send(soon(t), tc.tag, files); err == nil {
			t.Errorf("%s was sent", tc.name)
		}
	}
	if err := s.Send(soon(t), strings.Repeat("x", MaxTag), []*os.File{w}); err != nil {
		t.Error(err)
	}
}

func TestAnEndMustBeASocket(t *testing.T) {
	w, _ := pipe(t)
	if _, err := Receive(w); err == nil {
		t.Error("a pipe was taken")
	}
}
