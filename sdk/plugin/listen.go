package plugin

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nucleus-runtime/nucleus/sdk/plugin/handshake"
)

// A plugin is go-plugin's to its host, and made without it: its server brings
// net/rpc, gob, reflection and templates, and with them a third of the time that a
// process takes before it can answer, for nothing that is used here.

// listen makes a socket under a name that nobody has.
func listen() (net.Listener, error) {
	for {
		l, err := net.Listen("unix", filepath.Join(os.Getenv(handshake.EnvSocketDir), fmt.Sprintf("plugin%d", rand.Uint32())))
		if !errors.Is(err, syscall.EADDRINUSE) {
			return l, err
		}
	}
}

// goPluginServices are those of its own that a host made with go-plugin calls. One
// without its streams of standard output, and without its broker, it takes for a
// plugin of an older version.
func (s *server) goPluginServices(g *grpc.Server) {
	h := health.NewServer()
	h.SetServingStatus("plugin", healthv1.HealthCheckResponse_SERVING)
	healthv1.RegisterHealthServer(g, h)
	g.RegisterService(&grpc.ServiceDesc{
		ServiceName: "plugin.GRPCController", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Shutdown", Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			if err := decode(&emptypb.Empty{}); err != nil {
				return nil, err
			}
			s.end()
			return &emptypb.Empty{}, nil
		}}},
	}, s)
}
