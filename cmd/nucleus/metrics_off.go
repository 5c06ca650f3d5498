//go:build !plugins

package main

import "context"

// serveMetrics is the other build's: an HTTP server would cost every run of this one.
func (a *app) serveMetrics(context.Context, metricsPlace) error { return a.becomeFull() }
