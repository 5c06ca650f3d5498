package lifecycle

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A signal is delivered as soon as there is what it is for, and until it has arrived.
func TestASignalInsideIsNotLost(t *testing.T) {
	refusal := &refusedError{128}
	for name, x := range map[string]struct {
		late          time.Duration // until there is a number
		life          time.Duration // 0 for ever
		errs          []error       // of the calls, nil afterwards
		calls         int
		done, refused bool
	}{
		"at once":                           {calls: 1, done: true},
		"an hour later":                     {late: time.Hour, calls: 1, done: true},
		"it has ended before":               {late: time.Hour, life: time.Minute},
		"the call came to no end":           {errs: []error{context.DeadlineExceeded, context.DeadlineExceeded}, calls: 3, done: true},
		"there was no process for the call": {errs: []error{errors.New("EAGAIN"), errors.New("EAGAIN"), errors.New("EAGAIN"), errors.New("EAGAIN"), errors.New("EAGAIN"), errors.New("EAGAIN")}, calls: 7, done: true},
		"it was refused, and then not":      {errs: []error{refusal, refusal}, calls: 3, done: true},
		"it is refused":                     {errs: []error{refusal, refusal, refusal, refusal, refusal, refusal}, calls: refusals, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin, calls, ended := time.Now(), 0, make(chan struct{})
				if x.life > 0 {
					time.AfterFunc(x.life, func() { close(ended) })
				}
				done, refused := delivery{
					number: func() int {
						if time.Since(begin) < x.late {
							return 0
						}
						return 7
					},
					deliver: func(pid int) error {
						if calls++; pid != 7 || calls > len(x.errs) {
							return nil
						}
						return x.errs[calls-1]
					},
					ended: ended,
				}.run()
				if calls != x.calls || done != x.done || refused != x.refused {
					t.Errorf("%d calls, done %t, refused %t: %+v", calls, done, refused, x)
				}
			})
		})
	}
}
