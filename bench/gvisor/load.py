# What a workload does, and how long each takes: "NAME SECONDS" a line.
import os, socket, subprocess, threading, time


def timed(name, f):
    t = time.monotonic()
    f()
    print(name, time.monotonic() - t, flush=True)


def calls():
    for _ in range(200000):
        os.getppid()


def files():
    for i in range(2000):
        with open(f"/tmp/{i}", "w") as f:
            f.write("x")
    for i in range(2000):
        os.stat(f"/tmp/{i}")
        os.unlink(f"/tmp/{i}")


def toolchain():
    for _, _, names in os.walk("/usr/lib/python3"):
        len(names)


def compute():
    x = 0
    for i in range(5000000):
        x += i * i


def processes():
    for _ in range(100):
        subprocess.run(["/bin/true"], check=True)


def loopback():
    size = 512 << 20
    s = socket.create_server(("127.0.0.1", 0))

    def send():
        c, _ = s.accept()
        b = bytes(1 << 16)
        for _ in range(size >> 16):
            c.sendall(b)
        c.close()

    t = threading.Thread(target=send)
    t.start()
    c = socket.create_connection(s.getsockname())
    b = bytearray(1 << 16)
    while c.recv_into(b):
        pass
    t.join()


for f in (calls, files, toolchain, compute, processes, loopback):
    timed(f.__name__, f)
