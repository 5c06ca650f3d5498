package host

// Names of the features, as doctor prints them and allow_degraded takes them.
const (
	featUserNS        = "userns"
	featSubID         = "userns.idmap.subid"
	featMountNS       = "mountns"
	featPIDNS         = "pidns"
	featNetNS         = "netns"
	featIPCNS         = "ipcns"
	featUTSNS         = "utsns"
	featCgroupNS      = "cgroupns"
	featTimeNS        = "timens"
	featLandlock      = "landlock"
	featLandlockTCP   = "landlock.tcp"
	featLandlockScope = "landlock.scope"
	featSeccomp       = "seccomp"
	featSeccompNotify = "seccomp.notify"
	featSeccompLog    = "seccomp.log"
	featNoNewPrivs    = "no-new-privs"
	featKeyring       = "keyring-session"
	featLockdown      = "lockdown"
	featCgroup        = "cgroup"
	featCgroupMemory  = "cgroup.memory"
	featCgroupCPU     = "cgroup.cpu"
	featCgroupPids    = "cgroup.pids"
	featCgroupIO      = "cgroup.io"
	featCgroupSwap    = "cgroup.swap"
	featCgroupKill    = "cgroup.kill"
	featCgroupClone   = "clone-into-cgroup"
	featPidfd         = "pidfd"
	featOpenat2       = "openat2"
	featCloseRange    = "close-range"
	featMemfd         = "memfd-sealing"
	featMountAPI      = "mount-api"
	featMountSetattr  = "mount-setattr"
	featIDMapped      = "idmapped-mounts"
	featOverlay       = "overlayfs"
	featOverlayUserNS = "overlayfs.userns"
	featNoSwap        = "tmpfs.noswap"
	featDevpts        = "devpts"
	featProcMount     = "proc-mount"
	featSysfsMount    = "sysfs-mount"
	featNft           = "nftables.userns"
	featTProxy        = "tproxy.userns"
	featForwarding    = "nftables.forwarding"
	featNumgen        = "nftables.numgen"
	featConntrack     = "conntrack-netlink"
	featTun           = "tun"
	featVeth          = "veth"
	featBridge        = "bridge"
)

// since is the first kernel that has a feature, "" for those older than any
// kernel that Go runs on.
func since(name string) string {
	switch name {
	case featUserNS:
		return "3.8"
	case featNft:
		return "3.13"
	case featCgroupNS:
		return "4.6"
	case featNumgen:
		return "4.9"
	case featTimeNS, featOpenat2:
		return "5.6"
	case featLandlock:
		return "5.13"
	case featLandlockTCP:
		return "6.7"
	case featLandlockScope:
		return "6.12"
	case featSeccomp, featNoNewPrivs:
		return "3.5"
	case featSeccompNotify:
		return "5.0"
	case featSeccompLog:
		return "4.14"
	case featLockdown:
		return "5.4"
	case featCgroupKill:
		return "5.14"
	case featCgroupClone:
		return "5.7"
	case featPidfd:
		return "5.3"
	case featCloseRange:
		return "5.11"
	case featMemfd:
		return "3.17"
	case featMountAPI:
		return "5.2"
	case featMountSetattr, featIDMapped:
		return "5.12"
	case featOverlay:
		return "3.18"
	case featOverlayUserNS:
		return "5.11"
	case featNoSwap:
		return "6.4"
	}
	return ""
}
