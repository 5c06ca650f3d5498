job "secrets" {
  command = ["/bin/true"]
  user    = "app"

  rootfs {
    path = "./rootfs"
  }

  secret "db" {
    provider = "file"

    config {
      path = "/etc/secrets/db"
    }
  }

  secret "tls" {
    provider = "vault"
    target   = "/run/secrets/tls/key.pem"
    mode     = "0440"
  }

  secret "token" {
    provider = "vault"
    env      = "API_TOKEN"
  }

  tmpfs "/run" {
    size = "8MiB"
  }
}
