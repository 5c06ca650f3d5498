job "seats" {
  command = ["/bin/sh", "-c", "echo seated; sleep 3"]

  plugin_hook "seats" {
    timeout = "5s"
  }
}
