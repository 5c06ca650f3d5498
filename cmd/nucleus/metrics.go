package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/nucleus-runtime/nucleus/cmd/nucleus/internal/metrics"
)

// metricsPlace is where metrics go: to one of the three.
type metricsPlace struct {
	file   string
	socket string
	listen netip.AddrPort
}

// parsePlace reads the value of -metrics. None can be taken for another: a file's name
// ends in .prom, which the collector wants, an address in digits.
func parsePlace(s string) (p metricsPlace, err error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok && path != "" {
		p.socket = path
		return p, nil
	}
	if strings.HasSuffix(s, ".prom") && filepath.Base(s) != ".prom" {
		p.file = s
		return p, nil
	}
	host, port, ok := strings.Cut(s, ":")
	if ok && (host == "" || host == "localhost") {
		s = "127.0.0.1:" + port
	}
	if p.listen, err = netip.ParseAddrPort(s); err != nil {
		return p, &usageError{err: fmt.Errorf("-metrics %q: neither FILE.prom nor ADDRESS:PORT nor unix:PATH", s), hint: "nucleus stats -metrics 127.0.0.1:9477"}
	}
	return p, nil
}

func (a *app) metrics(ctx context.Context, where string) error {
	p, err := parsePlace(where)
	if err != nil {
		return err
	}
	if p.file == "" {
		return a.serveMetrics(ctx, p)
	}
	b, err := a.metricsText(ctx)
	if err != nil {
		return err
	}
	// The collector is another user, and reads what ends in .prom.
	if err := replaceFile(p.file, 0o644, b); err != nil {
		var at *fs.PathError
		if errors.As(err, &at) { // it names what would have become the file
			err = at.Err
		}
		return fmt.Errorf("metrics: writing %q: %w", p.file, err)
	}
	return nil
}

// metricsText asks every sandbox that is alive.
func (a *app) metricsText(ctx context.Context) ([]byte, error) {
	root, err := a.sandboxes()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	list, err := alive(root)
	if err != nil {
		return nil, err
	}
	a.accounts(ctx, list, func(ctx context.Context, x *account) (err error) {
		if err = askStats(ctx, x); err == nil {
			x.record, err = a.record(ctx, root, x.of)
		}
		return err
	})
	var out []metrics.Sandbox
	for i := range list {
		x := &list[i]
		switch {
		case x.err == nil:
			out = append(out, metrics.Sandbox{ID: x.of.ID, Name: x.of.Name, Record: x.record, Stats: &x.stats})
		case !x.over():
			out = append(out, metrics.Sandbox{ID: x.of.ID, Name: x.of.Name})
		}
	}
	return metrics.Text(version, out), nil
}
