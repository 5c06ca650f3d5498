# A PostgreSQL server and pgbench over loopback, the cluster in memory. It is
# user 1000, since PostgreSQL refuses to be root; a network is not needed for it.
job "postgres" {
  command = ["/bin/sh", "-eu", "bench.sh"]
  user    = "1000"
  timeout = "5m"

  workspace {
    path = "work"
    mode = "bind-ro"
  }
}
