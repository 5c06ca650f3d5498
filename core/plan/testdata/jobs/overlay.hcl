job "overlay" {
  command = ["sh"]
  user    = "app"

  rootfs {
    path     = "/srv/rootfs"
    writable = "overlay"
  }

  namespaces {
    user = "keep-id"
  }

  network "host" {
    dns = ["10.0.0.1", "fd00::1"]
  }

  security {
    no_default_landlock = true

    landlock {
      rule {
        paths  = ["/"]
        access = ["read", "execute"]
      }
    }
  }
}
