package lifecycle

import (
	"errors"
	"strings"

	"github.com/nucleus-runtime/nucleus/core/plan"
)

// checkSockets refuses sockets that do not go with the plan.
func (s *Sandbox) checkSockets() error {
	e := &PhaseError{Phase: "exec", Origin: "socket_activation"}
	switch {
	case s.plan.SocketActivation && len(s.cfg.Listen) == 0:
		e.Err = errors.New("the job wants sockets, and none were passed")
	case !s.plan.SocketActivation && len(s.cfg.Listen) > 0:
		e.Err = errors.New("sockets were passed, and the job does not want any")
	default:
		for _, x := range s.cfg.Listen {
			if err := mayPass(s.plan, x.IP); err != nil {
				return err
			}
		}
		return nil
	}
	return e
}

// mayPass tells whether a sandbox of this plan may have a socket. One of an IP family is
// a door into the network that it was made in, whatever the sandbox's own is: a UDP
// socket sends anywhere, and a TCP socket can be made to connect instead of to listen
// (shutdown(2), then MSG_FASTOPEN, which Landlock does not see).
func mayPass(p *plan.Plan, ip bool) error {
	e := &PhaseError{Phase: "exec", Origin: "socket_activation"}
	switch {
	case !ip || p.Network.Backend == "host":
		return nil
	case p.Network.Plugin:
		e.Err = errors.New("a TCP or UDP socket of the host's network goes around the policy of the sandbox's own")
		e.Hint = "pass a socket of AF_UNIX (ListenStream=/run/web.sock), or use publish in the network block"
	case p.Mode.Strict():
		e.Err = errors.New("a TCP or UDP socket lets the sandbox into the host's network, which mode " + string(p.Mode) + " refuses")
		e.Hint = "pass a socket of AF_UNIX (ListenStream=/run/web.sock), or use publish of a network plugin"
	default:
		return nil
	}
	return e
}

// passSockets adds the sockets to the descriptors of the setup.
func (s *Sandbox) passSockets(fds []int) []int {
	names := make([]string, 0, len(s.cfg.Listen))
	for _, x := range s.cfg.Listen {
		s.process.Listen = append(s.process.Listen, int32(len(fds)))
		fds = append(fds, x.FD)
		names = append(names, x.Name)
	}
	s.process.ListenNames = strings.Join(names, ":")
	return fds
}
