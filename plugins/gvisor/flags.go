package gvisor

import (
	"os"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

// What runsc calls the networks that it has.
const (
	stackNone    = "none"    // its own stack, with a loopback interface alone
	stackHost    = "host"    // the kernel's
	stackSandbox = "sandbox" // its own, which takes the namespace's interfaces over
)

// stackFor is the one for a network, and what the job says of it.
func stackFor(want string, n runtime.Network) (string, error) {
	switch n {
	case runtime.NetworkNone:
		if want == "host" {
			return stackHost, nil
		}
		return stackNone, nil
	case runtime.NetworkHost:
		if want == "own" {
			return "", errs.ConfigErrorf(errs.Path("network_stack"), `gVisor's own stack would take the host's interfaces away from it: leave network_stack out, or give the job a network of a plugin's`)
		}
		return stackHost, nil
	case runtime.NetworkOwn:
		if want == "own" {
			return stackSandbox, nil
		}
		return stackHost, nil
	default:
		return "", errs.Preconditionf("network %d is of a newer Nucleus than this plugin", n)
	}
}

// platformDevices are those that a platform needs.
func platformDevices(platform string) ([]string, error) {
	if platform != "kvm" {
		return nil, nil
	}
	// Who may open it is another question: it is opened by the sandbox's user, not by us.
	const dev = "/dev/kvm"
	if st, err := os.Stat(dev); err != nil || st.Mode()&os.ModeCharDevice == 0 {
		return nil, errs.Preconditionf(`platform "kvm" needs %s, which this host has not: load kvm_intel or kvm_amd, allow nested virtualization in a virtual machine, or take platform = "systrap"`, dev)
	}
	return []string{dev}, nil
}

// globals are the flags that all calls have in common. All that runsc is called with
// is written here: nothing of a job becomes an argument but as one of the words that
// are compared above.
type globals struct {
	network, platform string
	hostSockets       bool
}

func (g globals) command(name string, more ...string) runtime.Command {
	return runtime.Command{Args: append(append(g.flags(), name), more...)}
}

func (g globals) flags() []string {
	args := []string{
		"runsc",
		"--root=" + runtime.StatePath,
		// They are the core's, and runsc is in them already.
		"--ignore-cgroups",
		// What may be written is the core's to say: an overlay of runsc's would hide it.
		"--overlay2=none",
		// Nobody but the sandbox writes to its root. Somebody may to its mounts.
		"--file-access=exclusive",
		"--file-access-mounts=shared",
		"--network=" + g.network,
		"--platform=" + g.platform,
	}
	if g.hostSockets {
		args = append(args, "--host-uds=open")
	}
	return args
}

// run writes what runsc ends of, and what Go's runtime says when the sentry does, where
// neither is taken for the workload's: both open the file to append to it.
func (g globals) run() runtime.Command {
	args := append(g.flags(), "--log="+runtime.WordFailureFile, "--panic-log="+runtime.WordFailureFile)
	return runtime.Command{Args: append(args, "run", "--bundle="+runtime.BundlePath, "--pid-file="+runtime.WordPIDFile, runtime.WordID)}
}

func (g globals) exec() runtime.Command {
	return g.command("exec", "--process="+runtime.ProcessPath, "--internal-pid-file="+runtime.WordPIDFile, runtime.WordID)
}

// signal is needed: runsc itself passes signals on to what runs on a terminal alone,
// and dies of them otherwise.
func (g globals) signal() runtime.Command {
	return g.command("kill", "--pid="+runtime.WordPID, runtime.WordID, runtime.WordSignal)
}

// signalGroup: what `runsc exec` makes has no parent inside, and so leads a session.
func (g globals) signalGroup() runtime.Command {
	return g.command("kill", "--pgid="+runtime.WordPID, runtime.WordID, runtime.WordSignal)
}
