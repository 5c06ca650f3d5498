# A context: files that the job may read, copied in and compared with a manifest
# of digests. The key that lies among them is left out.
job "context" {
  command = ["/bin/sh", "-c", "find . -type f; cat settings.ini; touch new || echo cannot write"]
  workdir = "/context"

  context {
    source  = "config"
    target  = "/context"
    method  = "copy"
    verify  = true
    exclude = ["*.pem"]
  }
}
