package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

const (
	queries = 256 // are answered at a time
	conns   = 32  // are open at a time

	maxQuery   = 4096 // bytes; one question with its options has a few hundred
	idleLimit  = 10 * time.Second
	writeLimit = 5 * time.Second
	// again is how long a socket rests after an error that may pass.
	again = 50 * time.Millisecond
)

// Serve answers on both sockets, of which either may be nil, until ctx ends or the
// resolver is closed; then it returns nil. It closes them, and returns when all that
// it has begun is over.
func (r *Resolver) Serve(ctx context.Context, udp net.PacketConn, tcp net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.base, cancel)()
	var wg sync.WaitGroup
	var errUDP, errTCP error
	if udp != nil {
		defer context.AfterFunc(ctx, func() { udp.Close() })()
		wg.Go(func() {
			defer cancel()
			errUDP = r.serveUDP(ctx, udp, &wg)
		})
	}
	if tcp != nil {
		defer context.AfterFunc(ctx, func() { tcp.Close() })()
		wg.Go(func() {
			defer cancel()
			errTCP = r.serveTCP(ctx, tcp, &wg)
		})
	}
	if udp == nil && tcp == nil {
		<-ctx.Done()
	}
	wg.Wait()
	return errors.Join(errUDP, errTCP)
}

func (r *Resolver) serveUDP(ctx context.Context, udp net.PacketConn, wg *sync.WaitGroup) error {
	buf := make([]byte, maxQuery)
	for {
		// The slot comes first: what cannot be answered now waits in the kernel, which
		// has a limit of its own.
		if !take(ctx, r.queries) {
			return nil
		}
		n, from, err := udp.ReadFrom(buf)
		if err != nil {
			<-r.queries
			if over, err := rest(ctx, err); over {
				return err
			}
			continue
		}
		wire := append([]byte(nil), buf[:n]...)
		wg.Go(func() {
			defer func() { <-r.queries }()
			if out := r.answer(ctx, wire, 512); out != nil {
				_, _ = udp.WriteTo(out, from) // who does not get it asks again
			}
		})
	}
}

func (r *Resolver) serveTCP(ctx context.Context, tcp net.Listener, wg *sync.WaitGroup) error {
	for {
		conn, err := tcp.Accept()
		if err != nil {
			if over, err := rest(ctx, err); over {
				return err
			}
			continue
		}
		select {
		case r.conns <- struct{}{}:
			wg.Go(func() {
				defer func() { <-r.conns }()
				r.serveConn(ctx, conn)
			})
		default:
			conn.Close()
		}
	}
}

// serveConn answers one question after the other.
func (r *Resolver) serveConn(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	buf := make([]byte, maxQuery)
	for {
		var size [2]byte
		if conn.SetDeadline(time.Now().Add(idleLimit)) != nil {
			return
		}
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(size[:]))
		if n > len(buf) {
			return
		}
		if _, err := io.ReadFull(conn, buf[:n]); err != nil {
			return
		}
		if !take(ctx, r.queries) {
			return
		}
		out := r.answer(ctx, buf[:n], 0)
		<-r.queries
		if out == nil || conn.SetDeadline(time.Now().Add(writeLimit)) != nil {
			return
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)); err != nil {
			return
		}
	}
}

func take(ctx context.Context, slots chan struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// rest judges an error of a socket: whether it is over, and with which error. What
// else a socket has to say is of one packet or connection, or of a lack that passes.
func rest(ctx context.Context, err error) (over bool, _ error) {
	if ctx.Err() != nil {
		return true, nil
	}
	if errors.Is(err, net.ErrClosed) {
		return true, err
	}
	select {
	case <-ctx.Done():
		return true, nil
	case <-time.After(again):
		return false, nil
	}
}
