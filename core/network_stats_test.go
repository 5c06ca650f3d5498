package core_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core"
	sdk "github.com/nucleus-runtime/nucleus/sdk/network"
)

// Who looks at a sandbox's accounts sees its own network, and asks its backend for
// nothing once that is told to detach.
func TestNetworkIsCountedWhileItLives(t *testing.T) {
	b := &backend{prepare: sdk.PrepareResponse{}}
	b.asked = func(detached bool) {
		if detached {
			t.Error("the backend is asked after its end")
		}
	}
	rt := withNetwork(t, b, nil)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	s, err := rt.Create(t.Context(), planFor(t, rt, secretJob(t, "read x", lan)), core.RunOptions{Streams: core.Streams{In: in}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	st, err := s.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n := st.Network
	if n == nil || n.Interfaces == nil || len(n.Interfaces) != 0 || n.Denied == nil || *n.Denied != 7 || n.Flows == nil || n.Flows.TxBytes != 20 {
		t.Errorf("%+v: want no interface but lo, and what the backend counts", n)
	}
	over := make(chan struct{})
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		for {
			if _, err := s.Stats(t.Context()); err != nil {
				t.Error(err)
			}
			select {
			case <-over:
				return
			default:
			}
		}
	}()
	if _, err := in.WriteString("go on\n"); err != nil {
		t.Fatal(err)
	}
	res, err := s.Wait()
	if err != nil || res.ExitCode != 0 {
		t.Errorf("%+v, %v", res, err)
	}
	close(over)
	<-looked
	if st, err := s.Stats(t.Context()); err != nil || st.Network != nil {
		t.Errorf("of a sandbox that is gone: %+v, %v", st, err)
	}
	noneLeft(t)
}

// A sandbox on the host's network has none of its own: the host's is not shown for it.
func TestTheHostsNetworkIsNotCounted(t *testing.T) {
	rt := withNetwork(t, &backend{}, nil)
	s, err := rt.Create(t.Context(), planFor(t, rt, secretJob(t, "exit 0", `network "host" {}`)), core.RunOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := s.Stats(t.Context()); err != nil || st.Network != nil {
		t.Errorf("%+v, %v", st, err)
	}
	if err := s.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
}
