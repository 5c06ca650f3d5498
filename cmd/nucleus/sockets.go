package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/listen"
	"github.com/nucleus-runtime/nucleus/core/plan"
)

// sockets takes what a service manager has passed, for a job that wants it. For any
// other they are as little the sandbox's as whatever else the caller left open.
func (a *app) sockets(j *job.Job, detach bool) ([]listen.Socket, error) {
	if !j.SocketActivation {
		return nil, nil
	}
	got, err := listen.FromEnv(os.Getenv, os.Getpid())
	if err == nil {
		return got, nil
	}
	hint := "start it by a .socket unit; to try it: systemd-socket-activate -l 8080 nucleus run -config job.hcl"
	if !errors.Is(err, listen.ErrNone) {
		hint = "listening sockets are what a job can take: ListenStream= or ListenDatagram= in the .socket unit, without Accept=yes"
	}
	if detach && errors.Is(err, listen.ErrNone) {
		hint = "sockets are passed to a run in the foreground: leave out -detach"
	}
	return nil, plan.Errors{plan.ErrorAt(j, "socket_activation", hint, "socket_activation: "+err.Error())}
}

// warnOf says what a socket means that is of the host's network, and not the sandbox's.
func (a *app) warnOf(sockets []listen.Socket, p *plan.Plan) {
	for _, s := range sockets {
		if s.IP && p.Network.Backend != "host" {
			a.problem("warning", fmt.Sprintf("socket %q is of the host's network: a hostile workload can reach that network through it", s.Name), "pass a socket of AF_UNIX, which leads nowhere")
			return
		}
	}
}
