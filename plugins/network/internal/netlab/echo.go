package netlab

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Echo answers on the ports, of TCP and of UDP, at every address of the internet. A
// connection gets one line first, and every datagram one line back in front of what it
// carried: the protocol, the address and port that were reached, and who asked.
//
//	tcp 93.184.216.34:443 151.101.7.2:51234
func (l *Lab) Echo(t testing.TB, ports ...uint16) {
	t.Helper()
	l.Internet.Echo(t, ports...)
}

// Echo is Lab.Echo for any namespace.
func (n *Namespace) Echo(t testing.TB, ports ...uint16) {
	t.Helper()
	for _, port := range ports {
		for _, wildcard := range []string{"0.0.0.0", "::"} {
			at := net.JoinHostPort(wildcard, fmt.Sprint(port))
			family := "4"
			if wildcard == "::" {
				family = "6"
			}
			stream, err := n.Listen("tcp"+family, at)
			if err != nil {
				t.Fatalf("echo server: %v", err)
			}
			go serveStream(stream)
			packet, err := n.ListenPacket("udp"+family, at)
			if err != nil {
				t.Fatalf("echo server: %v", err)
			}
			u, ok := packet.(*net.UDPConn)
			if !ok {
				t.Fatalf("echo server: %T", packet)
			}
			if err := wantPacketInfo(u, family == "6"); err != nil {
				t.Fatalf("echo server: %v", err)
			}
			go servePackets(u, port)
		}
	}
}

// ParseEcho takes an echo server's line apart.
func ParseEcho(line string) (protocol string, reached, from netip.AddrPort, err error) {
	words := strings.Fields(line)
	if len(words) < 3 {
		return "", reached, from, fmt.Errorf("no echo server's line: %q", line)
	}
	if reached, err = netip.ParseAddrPort(words[1]); err != nil {
		return "", reached, from, err
	}
	from, err = netip.ParseAddrPort(words[2])
	return words[0], reached, from, err
}

func serveStream(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		// Ends with the client, or with the last namespace that the connection goes through.
		go func() {
			defer conn.Close()
			if _, err := fmt.Fprintf(conn, "tcp %s %s\n", conn.LocalAddr(), conn.RemoteAddr()); err != nil {
				return
			}
			_, _ = io.Copy(conn, conn)
		}()
	}
}

func servePackets(u *net.UDPConn, port uint16) {
	data, oob := make([]byte, 64<<10), make([]byte, 128)
	for {
		n, noob, _, from, err := u.ReadMsgUDPAddrPort(data, oob)
		if err != nil {
			return
		}
		reached, reply := packetInfo(oob[:noob])
		line := fmt.Sprintf("udp %s %s\n", netip.AddrPortFrom(reached, port), from)
		_, _, _ = u.WriteMsgUDPAddrPort(append([]byte(line), data[:n]...), reply, from)
	}
}

// wantPacketInfo has the kernel tell the address that a datagram was sent to.
func wantPacketInfo(u *net.UDPConn, v6 bool) error {
	raw, err := u.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		if v6 {
			inner = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		} else {
			inner = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
	})
	if err == nil {
		err = inner
	}
	return err
}

// packetInfo returns the address that a datagram was sent to, and what makes an answer
// come from there.
func packetInfo(oob []byte) (netip.Addr, []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}, nil
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= 12:
			info := unix.Inet4Pktinfo{Spec_dst: [4]byte(m.Data[8:12])}
			return netip.AddrFrom4(info.Spec_dst), unix.PktInfo4(&info)
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= 16:
			info := unix.Inet6Pktinfo{Addr: [16]byte(m.Data[:16])}
			return netip.AddrFrom16(info.Addr), unix.PktInfo6(&info)
		}
	}
	return netip.Addr{}, nil
}
