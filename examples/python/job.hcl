# A Python script that reads and writes the workspace, which is a directory of
# yours: the report lies in examples/python/work afterwards. No network, no rest of your home.
job "python" {
  command = ["/usr/bin/python3", "summarise.py", "numbers.txt"]
  timeout = "1m"

  workspace {
    path = "work"
  }
}
