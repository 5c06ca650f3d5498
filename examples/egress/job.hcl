# Two names may be reached on one port, and nothing else: what the job tries is
# refused before a packet, or a question for a name, has left the host. So it runs
# on a host without a network, too.
job "egress" {
  command = ["/bin/bash", "-c", <<-EOT
    reach() { (exec 3<>/dev/tcp/$1/$2 && read -r -t 1 <&3) 2>/dev/null; }
    getent hosts example.org || echo "example.org: no rule names it"
    reach 192.0.2.1 443 || echo "192.0.2.1: an address needs a rule of its own"
    reach 169.254.169.254 80 || echo "169.254.169.254: no metadata of a cloud"
    reach 127.0.0.1 22 || echo "127.0.0.1: loopback is the sandbox's own"
  EOT
  ]

  network "netuserspace" {
    egress {
      allow {
        names = ["proxy.golang.org", "sum.golang.org"]
        ports = ["443/tcp"]
      }
    }
  }
}
