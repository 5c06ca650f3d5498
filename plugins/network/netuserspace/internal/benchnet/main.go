// Command benchnet connects the network namespace of a process, as init and the core
// would, and serves it in its own process until it is ended. It is for bench/net.sh.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/fakeinit"
	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: benchnet PID")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "benchnet:", err)
		os.Exit(1)
	}
}

func run(pid string) error {
	if path := os.Getenv("CPUPROFILE"); path != "" {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	ctx := context.Background()
	n := netuserspace.New()
	if err := n.Configure(ctx, config.Instance{}, netuserspace.Settings{Path: os.Getenv("NETPATH")}); err != nil {
		return err
	}
	all := network.Egress{Default: network.Allow}
	p, err := n.Prepare(ctx, &network.PrepareRequest{Egress: all})
	if err != nil {
		return err
	}
	files, missing, err := inNamespace(pid, p)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "missing:", missing)
	if _, err := n.Attach(ctx, &network.AttachRequest{Egress: all, Prepared: p.Handle, Files: files, Missing: missing}); err != nil {
		return err
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	<-end
	return n.Close(ctx)
}

// inNamespace does init's part on a thread that ends with it.
func inNamespace(pid string, p *network.PrepareResponse) (files []*os.File, missing []string, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		ns, e := os.Open("/proc/" + pid + "/ns/net")
		if e != nil {
			err = e
			return
		}
		defer ns.Close()
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err == nil {
			files, missing, err = fakeinit.Do(p)
		}
	}()
	<-done
	return files, missing, err
}
