job "notify" {
  command   = ["/bin/serve"]
  init      = false
  sd_notify = true
  readiness {
    notify  = true
    timeout = "20s"
  }
}
