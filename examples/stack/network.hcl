# Two jobs, of which one reaches the other: nucleus up -config network.hcl, and nucleus
# logs network-web shows what web has reached. Nothing else is open, in either direction,
# and neither has an internet. As root, "netbridge" in both does the same.

job "db" {
  command = ["python3", "-m", "http.server", "5432"]
  workdir = "/tmp"

  network "netuserspace" {
    egress {}
  }

  readiness {
    tcp = 5432
  }
}

job "web" {
  command = ["/bin/bash", "-c", <<-EOT
    exec 3<>/dev/tcp/db/5432
    printf 'HEAD / HTTP/1.0\r\n\r\n' >&3
    read -r -d $'\r' _ status <&3 && echo "db:5432: $status"
    (exec 4<>/dev/tcp/db/22 && read -r _ <&4) 2>/dev/null || echo "db:22: no rule lists this port"
    getent hosts cron || echo "cron: no rule names it"
  EOT
  ]

  network "netuserspace" {
    egress {
      allow {
        jobs  = ["db"]
        ports = ["5432/tcp"]
      }
    }
  }

  # The rule opens the way; this waits for what is at its end.
  depends_on {
    job       = "db"
    condition = "ready"
  }
}
