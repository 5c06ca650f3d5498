# Three jobs that live together: nucleus up -config stack.hcl starts them in
# order, nucleus ps -config stack.hcl shows them, nucleus down ends them. They
# share a directory; each may write only where it has to.

variable "greeting" {
  type        = string
  default     = "hello"
  description = "what the clock is greeted with"
}

locals {
  volume = "./data"
}

# Runs once, to its end.
job "schema" {
  command = ["sh", "-c", "echo ${var.greeting} > /data/greeting"]

  volume "data" {
    source    = local.volume
    target    = "/data"
    create    = true
    read_only = false
  }
}

# A service, and how to tell that it is ready.
job "clock" {
  command = ["sh", "-c", "while date > /data/now; do sleep 1; done"]

  volume "data" {
    source    = local.volume
    target    = "/data"
    create    = true
    read_only = false
  }

  readiness {
    exec     = ["test", "-s", "/data/now"]
    interval = "100ms"
  }
}

# Starts when the one has done its work and the other is ready.
job "reader" {
  command = ["sh", "-c", "while cat /data/greeting /data/now; do sleep 60; done"]

  volume "data" {
    source = local.volume
    target = "/data"
  }

  depends_on {
    job       = "schema"
    condition = "exited"
  }

  depends_on {
    job       = "clock"
    condition = "ready"
  }
}
