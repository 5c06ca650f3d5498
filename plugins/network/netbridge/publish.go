package netbridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/hostport"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/relay"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// published are the ports of a sandbox on the host. What comes from outside is
// translated by the kernel. A socket holds each port all the same: nobody else can have
// it then, and it takes what comes from the host itself, which the kernel does not
// translate.
type published struct {
	ports   []network.PortMap
	sockets []entrance
	wg      sync.WaitGroup
}

type entrance struct {
	stream net.Listener
	packet net.PacketConn
	to     netip.AddrPort
}

func publish(a *attachment, ports []network.PortMap) (*published, error) {
	p := &published{}
	for i, m := range ports {
		taken, err := p.take(a, i, m)
		if err != nil {
			p.close()
			return nil, err
		}
		p.ports = append(p.ports, taken)
	}
	return p, nil
}

// hosts are the addresses at which a port is to be taken, each in one family.
func hosts(m network.PortMap, six bool) []netip.Addr {
	if m.HostIP.IsValid() {
		return []netip.Addr{m.HostIP.Unmap()}
	}
	out := []netip.Addr{netip.IPv4Unspecified()}
	if six {
		out = append(out, netip.IPv6Unspecified())
	}
	return out
}

// anyTries is how often a free port of the first family may turn out to be taken in
// the second.
const anyTries = 16

func (p *published) take(a *attachment, i int, m network.PortMap) (network.PortMap, error) {
	for try := 0; ; try++ {
		got, sockets, err := takeOnce(a, i, m)
		if err == nil {
			p.sockets = append(p.sockets, sockets...)
			return got, nil
		}
		if m.HostPort != 0 || !errors.Is(err, unix.EADDRINUSE) || try == anyTries {
			return m, err
		}
	}
}

func takeOnce(a *attachment, i int, m network.PortMap) (_ network.PortMap, out []entrance, err error) {
	defer func() {
		if err != nil {
			for _, r := range out {
				r.close()
			}
		}
	}()
	var lc net.ListenConfig
	for _, ip := range hosts(m, a.six) {
		to := a.v4
		if ip.Is6() {
			to = a.v6
			if !a.six {
				return m, out, network.AtPort(i, errs.Preconditionf("port %d cannot be published at %s: IPv6 is switched off on this host (net.ipv6.conf.default.disable_ipv6)", m.HostPort, ip))
			}
		}
		at := netip.AddrPortFrom(ip, m.HostPort)
		r := entrance{to: netip.AddrPortFrom(to, m.ContainerPort)}
		var bound net.Addr
		if m.Protocol == "tcp" {
			if r.stream, err = lc.Listen(a.ctx, hostport.Family("tcp", ip), at.String()); err == nil {
				bound = r.stream.Addr()
			}
		} else {
			if r.packet, err = lc.ListenPacket(a.ctx, hostport.Family("udp", ip), at.String()); err == nil {
				bound = r.packet.LocalAddr()
			}
		}
		if err != nil {
			return m, out, hostport.Refused(i, m, at, err)
		}
		out = append(out, r)
		if m.HostPort == 0 {
			m.HostPort = netip.MustParseAddrPort(bound.String()).Port()
		}
	}
	return m, out, nil
}

// exposePorts adds the translations, over those that are there.
func (c *change) exposePorts(s sandbox, over bool) error {
	for _, m := range s.ports {
		for _, ip := range hosts(m, s.six) {
			if ip.IsLoopback() {
				continue
			}
			f := inet4()
			if ip.Is6() {
				f = inet6()
			}
			set, k := f.exposeAny(), key([]byte{protocolNumber(m.Protocol)}, binaryutil.BigEndian.PutUint16(m.HostPort))
			if !ip.IsUnspecified() {
				set, k = f.expose(), key(ip.AsSlice(), k)
			}
			set = c.in(set)
			if over {
				there, err := c.GetSetElements(set)
				if err != nil {
					return fmt.Errorf("reading %s: %w", set.Name, err)
				}
				for _, e := range there {
					if bytes.Equal(e.Key, k) {
						c.without(set, nftables.SetElement{Key: k})
					}
				}
			}
			c.elements(set, nftables.SetElement{Key: k, Val: key(s.addr(f).AsSlice(), binaryutil.BigEndian.PutUint16(m.ContainerPort))})
		}
	}
	return nil
}

func (r entrance) close() {
	if r.stream != nil {
		_ = r.stream.Close()
	}
	if r.packet != nil {
		_ = r.packet.Close()
	}
}

func (p *published) close() {
	for _, r := range p.sockets {
		r.close()
	}
	p.wg.Wait()
}

// relays limits what one port may have open: each takes two descriptors.
const relays = 128

func (p *published) start(a *attachment) {
	for _, r := range p.sockets {
		if r.stream != nil {
			p.wg.Go(func() { r.serveStream(a.ctx, &p.wg) })
		} else {
			p.wg.Go(func() { r.servePacket(a.ctx, &p.wg) })
		}
	}
}

const (
	dialLimit  = 10 * time.Second
	udpIdle    = 60 * time.Second
	acceptRest = 50 * time.Millisecond
)

func (r entrance) serveStream(ctx context.Context, wg *sync.WaitGroup) {
	slots := make(chan struct{}, relays)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		c, err := r.stream.Accept()
		if err != nil {
			<-slots
			if errors.Is(err, net.ErrClosed) || !pause(ctx, acceptRest) {
				return
			}
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			if outer, ok := c.(*net.TCPConn); ok {
				r.splice(ctx, outer)
			}
		})
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// relayMark is of what serves published ports; the rules let nothing else of the host
// connect to a sandbox.
const relayMark = 0x6e6b7072

func dialer() *net.Dialer {
	return &net.Dialer{Timeout: dialLimit, Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			err = os.NewSyscallError("setsockopt SO_MARK", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, relayMark))
		})
		return errors.Join(cerr, err)
	}}
}

func (r entrance) splice(ctx context.Context, outer *net.TCPConn) {
	c, err := dialer().DialContext(ctx, "tcp", r.to.String())
	inner, ok := c.(*net.TCPConn)
	if err != nil || !ok {
		relay.Reset(outer) // as the kernel would, where nobody is
		return
	}
	defer context.AfterFunc(ctx, func() { outer.Close(); inner.Close() })()
	relay.Run(inner, outer, func(uint64, uint64) {})
}

// servePacket keeps a socket for each peer, so that answers find their way.
func (r entrance) servePacket(ctx context.Context, wg *sync.WaitGroup) {
	var mu sync.Mutex
	peers := make(map[netip.AddrPort]net.Conn)
	buf := make([]byte, 64<<10)
	for {
		n, from, err := r.packet.(*net.UDPConn).ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || !pause(ctx, acceptRest) {
				return
			}
			continue
		}
		mu.Lock()
		inner := peers[from]
		full := len(peers) >= relays
		mu.Unlock()
		if inner == nil {
			if full {
				continue
			}
			if inner, err = dialer().DialContext(ctx, "udp", r.to.String()); err != nil {
				continue
			}
			mu.Lock()
			peers[from] = inner
			mu.Unlock()
			wg.Go(func() {
				defer func() {
					mu.Lock()
					delete(peers, from)
					mu.Unlock()
					inner.Close()
				}()
				defer context.AfterFunc(ctx, func() { inner.Close() })()
				r.answers(inner, from)
			})
		}
		_ = inner.SetReadDeadline(time.Now().Add(udpIdle))
		_, _ = inner.Write(buf[:n])
	}
}

func (r entrance) answers(inner net.Conn, to netip.AddrPort) {
	buf := make([]byte, 64<<10)
	for {
		n, err := inner.Read(buf)
		if errors.Is(err, unix.ECONNREFUSED) {
			continue // nobody listens yet
		}
		if err != nil {
			return
		}
		_ = inner.SetReadDeadline(time.Now().Add(udpIdle))
		_, _ = r.packet.(*net.UDPConn).WriteToUDPAddrPort(buf[:n], to)
	}
}
