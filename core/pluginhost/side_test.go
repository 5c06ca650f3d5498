package pluginhost

import (
	"context"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
)

// reader is a network plugin that tells what it reads from what it is handed.
type reader struct{}

func (reader) Attach(_ context.Context, r *network.AttachRequest) (*network.AttachResponse, error) {
	out := &network.AttachResponse{Handle: network.Handle{Version: 1, Info: map[string]string{}}}
	for _, f := range r.Files {
		b, err := io.ReadAll(f)
		if err != nil {
			return nil, err
		}
		out.Handle.Info[f.Name()] = string(b)
	}
	return out, nil
}

func (reader) Detach(context.Context, *network.DetachRequest) ([]string, error) {
	return nil, errs.NotFoundf("nothing")
}

func sideBehaviours() map[string]func(*fake) {
	return map[string]func(*fake){"net": func(f *fake) {
		plugin.Serve(plugin.Plugin{Name: f.name, Version: "1", Network: reader{}, HandleVersions: []uint32{1}})
	}}
}

// A plugin that was started for a service that is handed descriptors gets them beside
// the request that they belong to; one that was started for another has no channel.
func TestDescriptorsReachAPlugin(t *testing.T) {
	r := newRig(t, nil)
	ask := func(as manifest.Service) (map[string]string, error) {
		p, err := r.Host.Start(t.Context(), "net", as)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var files []*os.File
		for _, name := range []string{"tap", "listener"} {
			from, to, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := to.WriteString("of the " + name); err != nil {
				t.Fatal(err)
			}
			_ = to.Close()
			f := os.NewFile(uintptr(dup(t, from)), name)
			_ = from.Close()
			defer f.Close()
			files = append(files, f)
		}
		req := &network.AttachRequest{Files: files}
		req.Call.RequestID, req.Call.SandboxID = "1", "id"
		got, err := p.Client().Network(nil).Attach(ctx, req)
		if err != nil {
			return nil, err
		}
		return got.Handle.Info, nil
	}
	got, err := ask(manifest.Network)
	if err != nil || got["tap"] != "of the tap" || got["listener"] != "of the listener" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := ask(manifest.Hooks); err == nil || !strings.Contains(err.Error(), "side channel") {
		t.Errorf("without a channel: %q, %v", got, err)
	}
}

func dup(t *testing.T, f *os.File) int {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}
