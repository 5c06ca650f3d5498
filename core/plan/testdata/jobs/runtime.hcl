job "runtime" {
  command = ["/bin/sh", "-c", "make test"]
  trust   = "untrusted"

  runtime "gvisor" {
    config {
      platform = "systrap"
    }
  }

  workspace {
    path = "."
  }

  tmpfs "/scratch" {
    size = "8MiB"
  }

  resources {
    memory = "512MiB"
    rlimit "nofile" {
      soft = 1024
      hard = 2048
    }
  }
}
