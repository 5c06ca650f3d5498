# Mode production: a root file system that is what its digest says, all limits set, nothing
# that is both writable and executable. First: ./prepare.sh; then nucleus run -config job.hcl -var-file digest.hcl
variable "digest" {
  type        = string
  description = "of ./rootfs, as prepare.sh writes it to digest.hcl"
}

job "production" {
  mode    = "production"
  command = ["/bin/busybox", "sh", "-c", "id -u; cp /bin/busybox /tmp && /tmp/busybox true || echo cannot execute what it wrote"]
  user    = "1000"
  timeout = "1m"

  rootfs {
    path   = "rootfs"
    digest = var.digest
  }
  resources {
    memory = "64MiB"
    cpus   = 0.5
    pids   = 32
  }
}
