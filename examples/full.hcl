# Every block and attribute of a job file, once. docs/job-file.md explains
# each; a job needs only the few that it is about.

variable "port" {
  type        = number
  default     = 8080
  description = "where the server listens"

  validation {
    condition     = var.port >= 1024
    error_message = "choose a port from 1024, the server is not root"
  }
}

locals {
  greeting = "hi"
  ok_url   = "http://127.0.0.1:${var.port}/ok"
}

job "web" {
  mode           = "production"
  allow_degraded = []
  trust          = "untrusted"

  command  = ["/bin/server", "-port", tostring(var.port)]
  env      = { GREETING = local.greeting }
  workdir  = "/srv"
  user     = "1000:1000"
  groups   = [2000]
  hostname = "web"
  tty      = false
  init     = true
  timeout  = "30m"
  umask    = "0022"

  stop {
    signal = "SIGTERM"
    grace  = "10s"
  }

  rootfs {
    path     = "./rootfs"
    digest   = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    writable = "overlay"
  }

  namespaces {
    user    = "map"
    uid_map = ["0:100000:65536"]
    gid_map = ["0:100000:65536"]
    time    = true
  }

  resources {
    memory      = "512MiB"
    memory_high = "448MiB"
    swap        = "0B"
    cpus        = 1.5
    cpu_weight  = 100
    pids        = 256
    rootfs_size = "1GiB"

    io "/dev/vda" {
      read_bps   = "100MiB"
      write_bps  = "50MiB"
      read_iops  = 1000
      write_iops = 500
    }

    rlimit "nofile" {
      soft = 1024
      hard = 1024
    }

    rlimit "core" {
      hard = "64MiB"
    }

    rlimit "memlock" {
      soft = "8MiB"
      hard = "unlimited"
    }
  }

  context {
    source  = "./src"
    target  = "/context"
    method  = "copy"
    verify  = true
    exclude = ["*.pem"]
  }

  workspace {
    path = "./work"
    mode = "bind-rw"
    exec = false
  }

  volume "data" {
    source    = "/srv/data"
    target    = "/data"
    read_only = true
    create    = false
  }

  tmpfs "/scratch" {
    size = "64MiB"
    mode = "0700"
  }

  network "netbridge" {
    dns = ["10.0.0.1"]

    config {
      subnet = "10.42.0.0/24"
    }

    publish {
      host      = "127.0.0.1:8080"
      container = var.port
      protocol  = "tcp"
    }

    egress {
      allow {
        names = ["api.example.com", "*.pypi.org"]
        ports = ["443/tcp"]
      }

      allow {
        cidrs = ["10.0.0.0/8", "fd00::/8"]
        ports = ["5432/tcp"]
      }
    }
  }

  secret "db-password" {
    provider = "file"
    target   = "/run/secrets/db"
    mode     = "0400"

    config {
      path = "/etc/secrets/db"
    }
  }

  runtime "gvisor" {
    checkpoint = false

    config {
      platform = "systrap"
    }
  }

  security {
    lockdown            = "integrity"
    no_default_landlock = false

    capabilities {
      keep = ["NET_BIND_SERVICE"]
    }

    seccomp {
      profile = "web.seccomp.json"
      sha256  = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
      mode    = "enforce"
      allow   = ["io_uring_setup"]
    }

    landlock {
      rule {
        paths  = ["/data"]
        access = ["read", "write", "create", "remove"]
      }

      rule {
        paths  = ["/opt/tools"]
        access = ["read", "execute"]
      }

      tcp {
        connect = [443]
        bind    = [8080]
      }
    }
  }

  readiness {
    exec     = ["/bin/check"]
    interval = "1s"
    timeout  = "60s"
  }

  health {
    http         = local.ok_url
    interval     = "30s"
    timeout      = "5s"
    retries      = 3
    start_period = "5s"
    on_failure   = "restart"
  }

  restart {
    on       = "failure"
    attempts = 3
    backoff  = "1s"
  }

  sd_notify         = true
  socket_activation = true

  hook "createRuntime" {
    command = ["/usr/libexec/x"]
    env     = { LEVEL = "2" }
    timeout = "30s"
  }

  plugin_hook "audit-trail" {
    config {
      endpoint = "unix:///run/audit.sock"
    }
  }

  depends_on {
    job       = "schema"
    condition = "exited"
  }
}

# What the other job waits for, when nucleus up starts both.
job "schema" {
  command = ["/bin/migrate"]
}
