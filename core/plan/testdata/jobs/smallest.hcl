job "smallest" {
  command = ["/bin/true"]
}
