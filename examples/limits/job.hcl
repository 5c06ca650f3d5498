# Limits of memory, processors and processes, and what happens at them. An ordinary
# user needs a delegated control group for it; nucleus says how when there is none.
job "limits" {
  command = ["/bin/sh", "-c", <<-SCRIPT
    head -c 200M /dev/zero | tail -c 200M >/dev/null; echo "200 MB in memory: exit code $?"
    sh -c 'for i in $(seq 100); do sleep 1 & done' 2>/dev/null || echo "100 processes: exit code $?"
    SCRIPT
  ]
  timeout = "30s"

  resources {
    memory = "128MiB"
    cpus   = 0.5
    pids   = 64
  }
}
