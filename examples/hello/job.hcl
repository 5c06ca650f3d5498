# The smallest job: a command. Everything else is a default:
# `nucleus plan -config examples/hello/job.hcl` shows them.
job "hello" {
  command = ["/bin/echo", "hello from nucleus"]
}
