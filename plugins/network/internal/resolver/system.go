package resolver

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"

	"github.com/nucleus-runtime/nucleus/sdk/network"
)

const (
	maxServers = 3       // as many as the C library asks (resolv.conf(5), MAXNS)
	maxConf    = 1 << 20 // bytes
)

// Upstream gives the servers that a job names, or those of the host.
func Upstream(d *network.DNS) ([]netip.AddrPort, error) {
	if d == nil || len(d.Servers) == 0 {
		return System("")
	}
	out := make([]netip.AddrPort, len(d.Servers))
	for i, s := range d.Servers {
		out[i] = netip.AddrPortFrom(s, 53)
	}
	return out, nil
}

// System reads the servers of a resolv.conf; path "" is that of the host. One
// without servers means the host itself, as resolv.conf(5) has it.
func System(path string) ([]netip.AddrPort, error) {
	if path == "" {
		path = "/etc/resolv.conf"
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("find the host's resolvers: %w", err)
	}
	defer f.Close()
	var out []netip.AddrPort
	lines := bufio.NewScanner(io.LimitReader(f, maxConf))
	for lines.Scan() && len(out) < maxServers {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		// What is no address is passed over, as by the C library.
		if a, err := netip.ParseAddr(fields[1]); err == nil {
			out = append(out, netip.AddrPortFrom(a, 53))
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("find the host's resolvers: read %s: %w", path, err)
	}
	if len(out) == 0 {
		out = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53)}
	}
	return out, nil
}
