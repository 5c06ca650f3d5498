package grammar

// Features are the abilities of a host by the names that nucleus doctor prints
// and allow_degraded takes. Package core tests that doctor knows the same ones.
func Features() []string {
	return []string{
		"userns", "userns.idmap.subid", "mountns", "pidns", "netns", "ipcns", "utsns", "cgroupns", "timens",
		"landlock", "landlock.tcp", "landlock.scope", "seccomp", "seccomp.notify", "seccomp.log", "no-new-privs", "keyring-session", "lockdown",
		"cgroup", "cgroup.memory", "cgroup.cpu", "cgroup.pids", "cgroup.io", "cgroup.freezer", "cgroup.swap", "cgroup.kill", "clone-into-cgroup",
		"pidfd", "openat2", "close-range", "memfd-sealing", "mount-api", "mount-setattr", "idmapped-mounts", "overlayfs", "overlayfs.userns",
		"tmpfs.noswap", "devpts", "proc-mount", "sysfs-mount", "nftables.userns", "tproxy.userns", "nftables.forwarding", "nftables.numgen", "conntrack-netlink", "tun", "veth", "bridge",
	}
}
