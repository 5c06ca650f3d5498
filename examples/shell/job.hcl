# An interactive shell with a terminal of the sandbox's own: look around, press
# Ctrl-D to leave. Nothing that you do in it outlives it.
job "shell" {
  command = ["/bin/bash", "--norc"]
  tty     = true
  env = {
    PS1  = "sandbox:\\w\\$ "
    TERM = "xterm"
  }
}
