job "curfew" {
  command = ["/usr/bin/env"]

  plugin_hook "curfew" {
  }
}
