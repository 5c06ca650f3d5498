package probe

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"time"
)

func bulk(ctx context.Context, p Probe) Result {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp"+p.Family, p.To)
	if err != nil {
		return failure(err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return Result{Err: "no TCP connection"}
	}
	sent := noise(p.Size)
	wrote := make(chan error, 1)
	go func() {
		_, err := tcp.Write(sent)
		wrote <- errors.Join(err, tcp.CloseWrite())
	}()
	in := bufio.NewReader(conn)
	line, err := in.ReadString('\n')
	if err != nil {
		return failure(fmt.Errorf("no echo: %w", err))
	}
	back, err := io.ReadAll(in)
	if err := errors.Join(err, <-wrote); err != nil {
		return failure(fmt.Errorf("after %d bytes: %w", len(back), err))
	}
	if !bytes.Equal(back, sent) {
		return Result{Err: fmt.Sprintf("%d bytes came back of %d, or others", len(back), len(sent))}
	}
	return Result{OK: true, Line: strings.TrimSpace(line)}
}

// noise differs at each place, so that what is lost, doubled or swapped shows.
func noise(size int) []byte {
	var seed [32]byte
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(seed).Read(b)
	return b
}

func datagram(ctx context.Context, p Probe) Result {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp"+p.Family, p.To)
	if err != nil {
		return failure(err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	sent := noise(p.Size)
	if _, err := conn.Write(sent); err != nil {
		return failure(err)
	}
	buf := make([]byte, 64<<10)
	n, err := conn.Read(buf)
	if err != nil {
		return failure(fmt.Errorf("no echo: %w", err))
	}
	line, back, _ := bytes.Cut(buf[:n], []byte("\n"))
	if !bytes.Equal(back, sent) {
		return Result{Err: fmt.Sprintf("%d bytes came back of %d, or others", len(back), len(sent))}
	}
	return Result{OK: true, Line: string(line)}
}

func flood(ctx context.Context, p Probe) Result {
	var held []net.Conn
	defer func() {
		for _, c := range held {
			_ = c.Close()
		}
	}()
	r := Result{OK: true}
	for range p.Size {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp"+p.Family, p.To)
		if err != nil {
			r.Err = err.Error()
			break
		}
		held = append(held, c)
	}
	r.Count = len(held)
	time.Sleep(500 * time.Millisecond)
	return r
}
