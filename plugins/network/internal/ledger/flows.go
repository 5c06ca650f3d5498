package ledger

import (
	"slices"
	"strings"
	"sync/atomic"

	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// Flow counts what goes to one name.
type Flow struct {
	connections, rx, tx atomic.Uint64
}

// Open counts a new connection to the name, "" for one by address, and gives what
// counts its bytes. Beyond a number of names, others count as reached by address:
// a wildcard rule has no end of them.
func (l *Ledger) Open(name dnsname.Name) *Flow {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, ok := l.flows[string(name)]
	if !ok && name != "" && len(l.flows) >= names {
		name = ""
		f, ok = l.flows[""]
	}
	if !ok {
		f = new(Flow)
		l.flows[string(name)] = f
	}
	f.connections.Add(1)
	return f
}

// Add counts bytes: rx came into the sandbox, tx left it.
func (f *Flow) Add(rx, tx uint64) {
	f.rx.Add(rx)
	f.tx.Add(tx)
}

// Flows are the counts until now, by name.
func (l *Ledger) Flows() []network.FlowStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]network.FlowStats, 0, len(l.flows))
	for name, f := range l.flows {
		out = append(out, network.FlowStats{
			Name: name, Connections: f.connections.Load(), RxBytes: f.rx.Load(), TxBytes: f.tx.Load(),
		})
	}
	slices.SortFunc(out, func(a, b network.FlowStats) int { return strings.Compare(a.Name, b.Name) })
	return out
}
