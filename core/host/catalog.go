package host

import (
	"path"

	"golang.org/x/sys/unix"
)

// startProbe is a child that only answers.
const startProbe = "start"

// probes is every probe that runs in a child, in the order in which doctor
// prints them.
func probes() []probe {
	const (
		mnt = unix.CLONE_NEWNS
		net = unix.CLONE_NEWNET
		pid = unix.CLONE_NEWPID
	)
	return []probe{
		{name: featUserNS, place: sandboxed, run: probeUserNS, explain: explainUserNS},
		{name: featMountNS, place: sandboxed, flags: mnt, run: probeMountNS},
		{name: featPIDNS, place: sandboxed, flags: pid, run: probePIDNS},
		{name: featNetNS, place: sandboxed, flags: net, run: probeNetNS},
		{name: featIPCNS, place: sandboxed, run: func(string) (string, error) { return unshares("ipc", unix.CLONE_NEWIPC) }},
		{name: featUTSNS, place: sandboxed, run: probeUTSNS},
		{name: featCgroupNS, place: sandboxed, run: func(string) (string, error) { return unshares("cgroup", unix.CLONE_NEWCGROUP) }},
		{name: featTimeNS, place: sandboxed, run: func(string) (string, error) { return unshares("time_for_children", unix.CLONE_NEWTIME) }},

		{name: featNoNewPrivs, run: probeNoNewPrivs},
		{name: featSeccomp, run: probeSeccomp},
		{name: featSeccompNotify, run: probeSeccompNotify},
		{name: featSeccompLog, run: probeSeccompLog},
		{name: featLandlock, run: probeLandlock},
		{name: featLandlockTCP, run: probeLandlockTCP},
		{name: featLandlockScope, run: probeLandlockScope},
		{name: featKeyring, run: probeKeyring},

		{name: featPidfd, run: probePidfd},
		{name: featOpenat2, run: probeOpenat2},
		{name: featCloseRange, run: probeCloseRange},
		{name: featMemfd, run: probeMemfd},

		{name: featMountAPI, place: sandboxed, flags: mnt, needs: []string{featMountNS}, run: probeMountAPI},
		{name: featMountSetattr, place: sandboxed, flags: mnt, needs: []string{featMountNS}, run: probeMountSetattr},
		{name: featIDMapped, place: supervised, flags: mnt, needs: []string{featMountNS}, run: probeIDMapped, explain: explainIDMapped},
		{name: featOverlay, place: supervised, flags: mnt, needs: []string{featMountNS}, run: probeOverlay},
		{name: featOverlayUserNS, place: sandboxed, flags: mnt, needs: []string{featMountNS}, run: probeOverlay},
		{name: featNoSwap, place: supervised, flags: mnt, needs: []string{featMountNS}, run: probeNoSwap, explain: explainNoSwap},
		{name: featDevpts, place: sandboxed, flags: mnt, needs: []string{featMountNS}, run: probeDevpts},
		{name: featProcMount, place: sandboxed, flags: mnt | pid, needs: []string{featMountNS, featPIDNS}, run: probeProcMount, explain: explainProcMount},
		{name: featSysfsMount, place: sandboxed, flags: mnt | net, needs: []string{featMountNS, featNetNS}, run: probeSysfsMount},

		{name: featNft, place: sandboxed, flags: net, needs: []string{featNetNS}, run: probeNft},
		{name: featTProxy, place: sandboxed, flags: net, needs: []string{featNft}, run: probeTProxy},
		{name: featForwarding, place: sandboxed, flags: net, needs: []string{featNft}, run: probeForwarding},
		{name: featNumgen, place: sandboxed, flags: net, needs: []string{featNft}, run: probeNumgen},
		{name: featConntrack, place: sandboxed, flags: net, needs: []string{featNetNS}, run: probeConntrack},
		{name: featTun, place: sandboxed, flags: net, needs: []string{featNetNS}, run: probeTun, explain: explainTun},
		{name: featVeth, place: sandboxed, flags: net, needs: []string{featNetNS}, run: func(string) (string, error) { return addsLink("veth") }},
		{name: featBridge, place: sandboxed, flags: net, needs: []string{featNetNS}, run: func(string) (string, error) { return addsLink("bridge") }},
	}
}

// findProbe is the child's side of the list.
func findProbe(name string) (probe, bool) {
	if name == startProbe {
		return probe{name: name, run: func(string) (string, error) { return "", nil }}, true
	}
	for _, p := range probes() {
		if p.name == name {
			return p, true
		}
	}
	return probe{}, false
}

func parentDir(p string) string { return path.Dir(path.Clean(p)) }
