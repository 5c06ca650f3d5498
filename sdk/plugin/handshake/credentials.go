package handshake

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"google.golang.org/grpc/credentials"
)

// Peer is a process as the kernel knows it: SO_PEERCRED, see unix(7). It cannot be
// forged, and needs no key, which is why there is no TLS.
type Peer struct {
	PID int
	UID uint32
	GID uint32
}

// ErrPeer is a connection from, or to, another process than the one meant.
var ErrPeer = errors.New("not the expected process")

// Credentials checks the peer of each new connection, before the first byte of
// HTTP/2. For a host: check compares with the process that it has started.
//
//	grpc.WithTransportCredentials(handshake.Credentials(handshake.Only(func() (int, uint32) { return pid, uid })))
func Credentials(check func(Peer) error) credentials.TransportCredentials {
	return &peerCredentials{check}
}

// Only accepts one process. It is a function because a host has to configure its
// client before it knows the pid.
func Only(process func() (pid int, uid uint32)) func(Peer) error {
	return func(p Peer) error {
		if pid, uid := process(); p.PID != pid || p.UID != uid {
			return fmt.Errorf("%w: pid %d of user %d answers, and it is to be pid %d of user %d", ErrPeer, p.PID, p.UID, pid, uid)
		}
		return nil
	}
}

type peerCredentials struct{ check func(Peer) error }

// AuthInfo is what is known of a peer.
type AuthInfo struct {
	credentials.CommonAuthInfo
	Peer Peer
}

// AuthType names the kind.
func (AuthInfo) AuthType() string { return "peercred" }

func (c *peerCredentials) handshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	p, err := peerOf(conn)
	if err != nil {
		return nil, nil, err
	}
	if err := c.check(p); err != nil {
		return nil, nil, err
	}
	// The kernel carries it, and shows it to nobody else.
	return conn, AuthInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, p}, nil
}

func (c *peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.handshake(conn)
}

func (c *peerCredentials) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.handshake(conn)
}

func (*peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

func (c *peerCredentials) Clone() credentials.TransportCredentials { return &peerCredentials{c.check} }

// OverrideServerName does nothing: there are no names. The interface wants it.
func (*peerCredentials) OverrideServerName(string) error { return nil }

func peerOf(conn net.Conn) (Peer, error) {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return Peer{}, fmt.Errorf("%w: a %s connection tells nothing of its peer", ErrPeer, conn.LocalAddr().Network())
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *syscall.Ucred
	var serr error
	if err := raw.Control(func(fd uintptr) {
		cred, serr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return Peer{}, err
	}
	if serr != nil {
		return Peer{}, os.NewSyscallError("getsockopt SO_PEERCRED", serr)
	}
	return Peer{PID: int(cred.Pid), UID: cred.Uid, GID: cred.Gid}, nil
}
