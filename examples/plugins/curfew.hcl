job "curfew" {
  command = ["/bin/sh", "-c", "echo the next curfew is at $CURFEW"]

  plugin_hook "curfew" {}
}
