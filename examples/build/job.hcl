# Compile and test a C program in a directory of yours. exec = true lets what was
# built run; leave it out where nothing that the job writes should.
job "build" {
  command = ["/usr/bin/make", "-j2", "check"]
  timeout = "5m"

  workspace {
    path = "work"
    exec = true
  }
}
