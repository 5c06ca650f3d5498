//go:build plugins

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/cmd/nucleus/internal/metrics"
)

const (
	metricsClients = 16              // that are served at a time; others wait in the queue
	metricsRead    = 2 * time.Second // for a client to say what it wants
	metricsWrite   = 15 * time.Second
)

// serveMetrics serves /metrics until a signal ends it.
func (a *app) serveMetrics(ctx context.Context, p metricsPlace) error {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()
	l, err := listenMetrics(p)
	if err != nil {
		return err
	}
	where := "unix:" + p.socket
	if p.socket == "" {
		where = "http://" + l.Addr().String() + "/metrics"
	}
	turn := make(chan struct{}, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		select {
		case turn <- struct{}{}: // sandboxes are asked for one client at a time
		case <-r.Context().Done():
			return
		}
		b, err := a.metricsText(r.Context())
		<-turn
		if err != nil {
			http.Error(w, "nucleus: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", metrics.ContentType)
		_, _ = w.Write(b) // the client is gone: nobody is to be told
	})
	s := &http.Server{Handler: mux, ReadTimeout: metricsRead, WriteTimeout: metricsWrite, MaxHeaderBytes: 8 << 10}
	s.SetKeepAlivesEnabled(false) // who is served has one of few places
	if _, err := fmt.Fprintln(a.out, where); err != nil {
		return errors.Join(err, l.Close())
	}
	over := make(chan error, 1)
	go func() { over <- s.Serve(&fewClients{Listener: l, places: make(chan struct{}, metricsClients)}) }()
	select {
	case err := <-over:
		return fmt.Errorf("metrics: %w", err)
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		_ = s.Close() // a client that takes too long
	}
	if err := <-over; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}

// listenMetrics opens the socket. One on a path is for its owner alone, as the state
// root is, and takes the place of one that nobody listens at.
func listenMetrics(p metricsPlace) (net.Listener, error) {
	if p.socket == "" {
		l, err := net.Listen("tcp", p.listen.String())
		if err != nil {
			err = &hintedError{err: fmt.Errorf("metrics: %w", err), hint: "nucleus stats -metrics :0 takes a port that is free"}
		}
		return l, err
	}
	if c, err := net.Dial("unix", p.socket); err == nil {
		_ = c.Close()
		return nil, &hintedError{err: fmt.Errorf("metrics: somebody listens at %q", p.socket), hint: "end it, or name another path: nucleus stats -metrics unix:PATH"}
	} else if errors.Is(err, unix.ECONNREFUSED) {
		if err := removeSocket(p.socket); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	old := unix.Umask(0o177) // this process makes no other file
	l, err := net.Listen("unix", p.socket)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return l, nil
}

func removeSocket(path string) error {
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%q is there, and is no socket", path)
	}
	return os.Remove(path)
}

// fewClients accepts no more clients than there are places.
type fewClients struct {
	net.Listener
	places chan struct{}
}

func (l *fewClients) Accept() (net.Conn, error) {
	l.places <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.places
		return nil, err
	}
	return &placed{Conn: c, free: func() { <-l.places }}, nil
}

type placed struct {
	net.Conn
	once sync.Once
	free func()
}

func (c *placed) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.free)
	return err
}
