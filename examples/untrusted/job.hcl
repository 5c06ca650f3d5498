# Code that nobody has looked at, on a kernel of its own: nucleus run -config
# examples/untrusted/job.hcl, in the root of the repository. It needs gVisor's
# runsc; nucleus doctor tells whether there is one.

job "untrusted" {
  command = ["sh", "-c", "uname -r; sed 's/^/read: /' input; echo done > output"]

  # The native runtime is refused, should somebody remove the block below.
  trust   = "untrusted"
  timeout = "1m"

  workspace {
    path = "./work"
    mode = "bind-rw"
  }

  runtime "gvisor" {}
}
