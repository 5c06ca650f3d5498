package exit

import (
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// hostFresh is how long what is known of an address is taken to hold.
	hostFresh = 2 * time.Second
	hostKept  = 1024
)

// hostAddrs knows which addresses are the host's own. It asks the kernel's routes,
// since blocks of addresses can be local that no interface has. The zero value is
// ready.
type hostAddrs struct {
	mu    sync.Mutex
	known map[netip.Addr]bool
	until time.Time
}

func (h *hostAddrs) has(a netip.Addr) (bool, error) {
	now := time.Now()
	h.mu.Lock()
	if h.known == nil || now.After(h.until) || len(h.known) >= hostKept {
		h.known, h.until = make(map[netip.Addr]bool), now.Add(hostFresh)
	}
	own, ok := h.known[a]
	h.mu.Unlock()
	if ok {
		return own, nil
	}
	own, err := isLocal(a)
	if err != nil {
		return false, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.known[a] = own
	return own, nil
}

// isLocal asks the kernel for the route to an address. Where there is none, the
// address is nobody's.
func isLocal(a netip.Addr) (bool, error) {
	m := nl.NewRtMsg()
	m.Family, m.Dst_len = unix.AF_INET, 32
	if a.Is6() {
		m.Family, m.Dst_len = unix.AF_INET6, 128
	}
	m.Type, m.Scope, m.Protocol, m.Table = 0, 0, 0, 0
	r := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
	r.AddData(m)
	r.AddData(nl.NewRtAttr(unix.RTA_DST, a.AsSlice()))
	answers, err := r.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE)
	for _, nowhere := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL} {
		if errors.Is(err, nowhere) {
			return false, nil
		}
	}
	if err != nil {
		return false, err
	}
	for _, b := range answers {
		if len(b) >= unix.SizeofRtMsg {
			switch nl.DeserializeRtMsg(b).Type {
			case unix.RTN_LOCAL, unix.RTN_BROADCAST, unix.RTN_ANYCAST, unix.RTN_MULTICAST:
				return true, nil
			}
		}
	}
	return false, nil
}
