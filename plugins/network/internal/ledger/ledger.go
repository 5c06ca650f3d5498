// Package ledger owns what happened on one attachment: what was refused, and what
// went where. A workload chooses what comes in here and how fast, so that all of it
// is bounded: by time what is told, by number what is kept.
package ledger

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/network"
)

const (
	// alike is how long a denial waits for others of its kind after one was told.
	alike = time.Second
	// rate is how many denials are told per second, and at once after a pause.
	rate = 20
	// kinds is how many denials wait to be told.
	kinds = 256
	// names is how many names have a count of their own.
	names = 1024
)

// Ledger is of one attachment. It may be used from several goroutines.
type Ledger struct {
	mu     sync.Mutex
	denied uint64
	// waiting are the denials to tell, in the order in which they came up, and byKind
	// finds them. told has the kinds of the last second, which wait.
	waiting []*denial
	byKind  map[kind]*denial
	told    map[kind]time.Time
	paid    time.Time // until when those that were told have used up the rate
	arrived chan struct{}
	watcher context.CancelCauseFunc
	closed  bool

	flows map[string]*Flow
}

// kind is what makes denials alike.
type kind struct {
	protocol string
	dst      netip.AddrPort
	name     string
	rule     int
	reason   network.Reason
}

type denial struct {
	network.Denial
	kind kind
}

// New makes an empty one.
func New() *Ledger {
	return &Ledger{
		byKind:  make(map[kind]*denial),
		told:    make(map[kind]time.Time),
		arrived: make(chan struct{}, 1),
		flows:   make(map[string]*Flow),
	}
}
