job "production" {
  mode    = "production"
  command = ["/bin/server"]
  user    = "1000:1000"
  groups  = [2000]

  rootfs {
    path     = "/srv/rootfs"
    digest   = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    writable = "none"
  }

  resources {
    memory = "4GiB"
    cpus   = 1.5
    pids   = 64
  }

  context {
    source = "./conf"
    target = "/conf"
    method = "bind"
    verify = false
  }

  workspace {
    path = "./work"
    mode = "bind-ro"
    exec = true
  }

  security {
    capabilities {
      keep = ["NET_BIND_SERVICE"]
    }

    seccomp {
      profile = "web.json"
      sha256  = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
      mode    = "enforce"
      allow   = ["io_uring_setup"]
    }
  }
}
