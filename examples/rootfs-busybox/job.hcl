# A root file system of one static program instead of the host's toolchain:
# run ./prepare.sh first, which makes it. What the job changes in it is discarded.
job "busybox" {
  command = ["/bin/sh", "-c", "ls /bin | wc -l; echo changed >/etc/motd; cat /etc/motd"]

  rootfs {
    path     = "rootfs"
    writable = "overlay"
  }
}
