package netbridge

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// host speaks to the kernel about the host's network namespace, for one call.
type host struct {
	route *netlink.Handle
	batch socket
	v6    bool // what is made has IPv6, too; reserve asks the bridge
	locks *locker
	rules *rules
}

func (p *Plugin) host() (*host, error) {
	route, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	batch, err := open(unix.NETLINK_ROUTE)
	if err != nil {
		route.Close()
		return nil, err
	}
	return &host{route: route, batch: batch, v6: hasIPv6(), locks: &p.locks, rules: &p.rules}, nil
}

func (h *host) close() {
	h.route.Close()
	h.batch.close()
}
