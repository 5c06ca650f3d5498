package signals

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain plays the process that was started with a signal ignored.
func TestMain(m *testing.M) {
	if os.Getenv("SIGNALS_CHILD") == "" {
		os.Exit(m.Run())
	}
	c, _, err := Catch(unix.SIGHUP, unix.SIGTERM)
	if err != nil {
		os.Exit(2)
	}
	_ = unix.Kill(unix.Getpid(), unix.SIGHUP)
	_ = unix.Kill(unix.Getpid(), unix.SIGTERM)
	if n := <-c; n != unix.SIGTERM {
		_, _ = os.Stdout.WriteString("got " + unix.SignalName(n))
		os.Exit(1)
	}
	os.Exit(0)
}

func TestCatch(t *testing.T) {
	c, release, err := Catch(unix.SIGUSR1, unix.SIGUSR2)
	if err != nil {
		t.Fatal(err)
	}
	// Threads that are busy in Go code, in system calls and in between.
	stop := make(chan struct{})
	var busy sync.WaitGroup
	for range 4 {
		busy.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if s := strings.Repeat("x", i%4096); len(s) != i%4096 {
					t.Error("memory changed under a signal")
				}
				_ = unix.Getppid()
			}
		})
	}
	for i := range 500 {
		want := unix.SIGUSR1
		if i%2 == 1 {
			want = unix.SIGUSR2
		}
		if err := unix.Kill(unix.Getpid(), want); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-c:
			if got != want {
				t.Fatalf("signal %d: got %v, want %v", i, got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("signal %d is lost", i)
		}
	}
	close(stop)
	busy.Wait()
	release()
	// What was there before, the Go runtime's own handler, has them again.
	again := make(chan os.Signal, 1)
	signal.Notify(again, unix.SIGUSR1)
	defer signal.Stop(again)
	if err := unix.Kill(unix.Getpid(), unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	select {
	case <-again:
	case n := <-c:
		t.Errorf("%v is still caught after release", n)
	case <-time.After(10 * time.Second):
		t.Error("a signal after release is lost")
	}
}

func TestIgnoredStaysIgnored(t *testing.T) {
	// A child inherits what is ignored.
	signal.Ignore(unix.SIGHUP)
	defer signal.Reset(unix.SIGHUP)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "SIGNALS_CHILD=1")
	out, err := cmd.CombinedOutput()
	var ee *exec.ExitError
	if errors.As(err, &ee) || err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
