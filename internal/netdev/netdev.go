// Package netdev reads the counters of the interfaces of another network namespace,
// from proc(5): whose namespace it is never enters it, and asks nobody in it.
package netdev

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// Interface counts what went through one, since it was made.
type Interface struct {
	Name      string `json:"name"`
	RxBytes   uint64 `json:"rx_bytes"`
	RxPackets uint64 `json:"rx_packets"`
	RxErrors  uint64 `json:"rx_errors"`
	RxDropped uint64 `json:"rx_dropped"`
	TxBytes   uint64 `json:"tx_bytes"`
	TxPackets uint64 `json:"tx_packets"`
	TxErrors  uint64 `json:"tx_errors"`
	TxDropped uint64 `json:"tx_dropped"`
}

const (
	// maxInterfaces is how many are told of. Who may make interfaces in the namespace
	// could make thousands.
	maxInterfaces = 32
	maxBytes      = 32 << 10
	loopback      = "lo"
)

// Of reads what process pid sees, but for lo. The caller makes sure that the pid was
// the one that he means when Of has returned: then it was while it read.
func Of(pid int) ([]Interface, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return Parse(f)
}

// Parse reads a table as that of /proc/net/dev: two lines of titles, then an interface
// a line (dev_seq_printf_stats in net/core/net-procfs.c). It gives the first 32.
func Parse(r io.Reader) ([]Interface, error) {
	list := []Interface{}
	lines := bufio.NewScanner(io.LimitReader(r, maxBytes))
	for n := 0; lines.Scan() && len(list) < maxInterfaces; n++ {
		if n < 2 {
			continue
		}
		x, err := parse(lines.Text())
		if err != nil {
			return nil, err
		}
		if x.Name != loopback {
			list = append(list, x)
		}
	}
	return list, lines.Err()
}

func parse(line string) (x Interface, err error) {
	// The kernel allows no colon and no space in a name (dev_valid_name), but control
	// characters and bytes that are no UTF-8.
	name, rest, ok := strings.Cut(strings.TrimLeft(line, " "), ":")
	f := strings.Fields(rest)
	if !ok || name == "" || len(f) != 16 {
		return x, fmt.Errorf("network counters: %q is not a line of /proc/net/dev", line)
	}
	x.Name = printable(name)
	for i, to := range map[int]*uint64{
		0: &x.RxBytes, 1: &x.RxPackets, 2: &x.RxErrors, 3: &x.RxDropped,
		8: &x.TxBytes, 9: &x.TxPackets, 10: &x.TxErrors, 11: &x.TxDropped,
	} {
		if *to, err = strconv.ParseUint(f[i], 10, 64); err != nil {
			return x, fmt.Errorf("network counters: %q is no number", f[i])
		}
	}
	return x, nil
}

// printable writes a name so that two names stay two, in letters that drive nothing.
func printable(name string) string {
	var b strings.Builder
	for i := range len(name) {
		if c := name[i]; c > ' ' && c < 0x7f && c != '\\' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String()
}
