package main

import (
	"context"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

type heard []string

func (s *heard) Stop()                { *s = append(*s, "stop") }
func (s *heard) Last()                { *s = append(*s, "last") }
func (s *heard) Signal(n unix.Signal) { *s = append(*s, unix.SignalName(n)) }

// A signal that comes just as the sandbox has been created does what it does a moment
// later, and not something else.
func TestASignalAtTheEndOfTheStartIsTheWorkloads(t *testing.T) {
	for _, x := range []struct {
		cause error
		want  heard
	}{
		{&receivedError{unix.SIGINT}, heard{"last", "SIGINT"}},
		{&receivedError{unix.SIGQUIT}, heard{"last", "SIGQUIT"}},
		{&receivedError{unix.SIGHUP}, heard{"SIGHUP"}},
		{&receivedError{unix.SIGUSR1}, heard{"SIGUSR1"}},
		{&receivedError{unix.SIGTERM}, heard{"stop"}},
		{context.Canceled, heard{"stop"}},
	} {
		var got heard
		if late(x.cause, &got); !slices.Equal(got, x.want) {
			t.Errorf("%v: %q, want %q", x.cause, got, x.want)
		}
	}
}
