job "agent" {
  mode           = "agent"
  allow_degraded = ["landlock", "cgroup.pids"]
  trust          = "trusted"
  command        = ["python3", "-c", "print(1)"]
  env            = { A = "1", B = "two" }
  workdir        = "/workspace/src"
  hostname       = "box"
  tty            = true
  init           = true
  timeout        = "30m"
  umask          = "0027"

  stop {
    signal = "SIGINT"
    grace  = "3s"
  }

  namespaces {
    user = "auto"
  }

  context {
    source  = "./src"
    target  = "/context"
    method  = "copy"
    verify  = true
    exclude = ["*.pem", "node_modules/"]
  }

  workspace {
    path = "./work"
    mode = "bind-rw"
    exec = true
  }

  volume "data" {
    source    = "/srv/data"
    target    = "/data"
    read_only = true
    create    = false
  }

  volume "cache" {
    source = "/srv/cache"
    target = "/var/cache/app"
    create = true
  }

  tmpfs "/scratch" {
    size = "64MiB"
    mode = "0700"
  }

  network "none" {}

  security {
    landlock {
      rule {
        paths  = ["/data", "/scratch"]
        access = ["read"]
      }
    }
  }
}
