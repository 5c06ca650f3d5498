job "limits" {
  mode    = "strict-agent"
  command = ["/bin/sh"]
  user    = "app:staff"
  groups  = [2000]

  namespaces {
    user    = "map"
    uid_map = ["0:100000:65536"]
    gid_map = ["0:100000:65536"]
    time    = true
  }

  resources {
    memory      = "512MiB"
    memory_high = "448MiB"
    swap        = "64MiB"
    cpus        = 0.29
    cpu_weight  = 50
    pids        = 256
    rootfs_size = "128MiB"

    io "/dev/vda" {
      read_bps   = "100MiB"
      write_bps  = "50MiB"
      read_iops  = 1000
      write_iops = 500
    }

    io "8:16" {
      read_bps = "1MiB"
    }

    rlimit "nofile" {
      soft = 1024
      hard = "unlimited"
    }
  }

  security {
    lockdown            = "integrity"
    no_default_landlock = false

    landlock {
      tcp {
        connect = [443, 53]
        bind    = [443, 8080]
      }
    }
  }
}
