package attacker

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func number(args []string, i, def int) int {
	if i < len(args) {
		if n, err := strconv.Atoi(args[i]); err == nil {
			return n
		}
	}
	return def
}

// forkBomb makes up to n processes that stay, and says how many it got.
func forkBomb(args []string) {
	mustBeInside()
	got := 0
	for range number(args, 0, 100) {
		pid, errno := forkCall(&call{nr: unix.SYS_PAUSE})
		if errno != 0 || pid <= 0 {
			break
		}
		got++
	}
	fmt.Println("COUNT", got)
}

// threadBomb makes up to n threads by raw clone: a Go program would die at the
// first that it does not get.
func threadBomb(args []string) {
	mustBeInside()
	// Processes that share all but a thread group count the same, and need no stack
	// of their own: the child runs on a copy of the parent's memory.
	got := 0
	for range number(args, 0, 100) {
		pid, _, e := pauseClone(unix.CLONE_FS | unix.CLONE_FILES)
		if e != 0 || pid <= 0 {
			break
		}
		got++
	}
	fmt.Println("COUNT", got)
}

//go:norace
//go:noinline
//go:nosplit
func pauseClone(flags uintptr) (int, int, syscall.Errno) {
	pid, _, e := syscall.RawSyscall6(syscall.SYS_CLONE, flags|uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if pid != 0 || e != 0 {
		return int(pid), 0, e
	}
	for {
		syscall.RawSyscall(syscall.SYS_PAUSE, 0, 0, 0)
	}
}

// eatMemory touches n MiB, in steps, and says how far it came.
func eatMemory(args []string) {
	mustBeInside()
	var keep [][]byte
	for i := range number(args, 0, 1024) {
		b := make([]byte, 1<<20)
		for j := 0; j < len(b); j += 4096 {
			b[j] = 1
		}
		keep = append(keep, b)
		if i%16 == 0 {
			fmt.Println("COUNT", i)
		}
	}
	fmt.Println("COUNT", len(keep))
	won("memory", "%d MiB", len(keep))
}

// fillFiles writes to every directory until nothing more fits, at most n MiB
// each, then makes empty files, at most m each.
func fillFiles(args []string) {
	mustBeInside()
	mib, inodes := number(args, 0, 512), number(args, 1, 20000)
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i)
	}
	for _, dir := range args[min(2, len(args)):] {
		written, files := 0, 0
		if f, err := os.Create(dir + "/filler"); err == nil {
			for written < mib {
				if _, err := f.Write(block); err != nil {
					break
				}
				written++
			}
			_ = f.Close()
		}
		for files < inodes {
			f, err := os.Create(fmt.Sprintf("%s/inode-%d", dir, files))
			if err != nil {
				break
			}
			_ = f.Close()
			files++
		}
		fmt.Println("FILLED", dir, written, files)
		if written == mib {
			won("fill", "%s took %d MiB", dir, written)
		}
	}
}

// descriptorBomb opens as many descriptors as it gets.
func descriptorBomb([]string) {
	mustBeInside()
	n := 0
	for n < 2<<20 {
		if _, err := unix.Open("/dev/null", unix.O_RDONLY, 0); err != nil {
			break
		}
		n++
	}
	fmt.Println("COUNT", n)
}

// kernelObjectBombs makes kernel objects of each kind until one is refused, at
// most n: pipes filled, sockets filled, epoll and inotify watches, queues.
func kernelObjectBombs(args []string) {
	mustBeInside()
	n := number(args, 0, 2000)
	fill := make([]byte, 64<<10)
	made := map[string]int{}
	for range n {
		var p [2]int
		if unix.Pipe2(p[:], unix.O_NONBLOCK) != nil {
			break
		}
		_, _ = unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, 1<<20)
		for {
			if _, err := unix.Write(p[1], fill); err != nil {
				break
			}
		}
		made["pipe"]++
	}
	for range n {
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			break
		}
		for {
			if _, err := unix.Write(p[0], fill); err != nil {
				break
			}
		}
		made["socket"]++
	}
	for range n {
		if _, err := unix.EpollCreate1(0); err != nil {
			break
		}
		made["epoll"]++
	}
	for range n {
		if _, err := unix.InotifyInit1(0); err != nil {
			break
		}
		made["inotify"]++
	}
	for range n {
		if _, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, 0); err != nil {
			break
		}
		made["timerfd"]++
	}
	for i := range n {
		name := append([]byte(fmt.Sprintf("bomb-%d", i)), 0)
		if _, _, e := unix.RawSyscall6(unix.SYS_MQ_OPEN, ptrTo(&name[0]), unix.O_CREAT|unix.O_RDWR, 0o600, 0, 0, 0); e != 0 {
			break
		}
		made["mq"]++
	}
	for range n {
		if _, err := unix.SysvShmGet(unix.IPC_PRIVATE, 4096, unix.IPC_CREAT|0o600); err != nil {
			break
		}
		made["shm"]++
	}
	fmt.Println("MADE", made)
}

// outlive leaves a daemon behind that has done everything to be on its own.
func outlive(args []string) {
	if len(args) > 0 && args[0] == "stay" {
		for s := syscall.Signal(1); s < 32; s++ {
			signalIgnore(s)
		}
		time.Sleep(time.Hour)
		return
	}
	c := exec.Command("/proc/self/exe", "daemon", "stay")
	c.Args[0] = "attacker"
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	wonIf(c.Start(), "daemon", "started")
	time.Sleep(100 * time.Millisecond)
}

// floodOutput writes n MiB to its standard output.
func floodOutput(args []string) {
	line := make([]byte, 64<<10)
	for i := range line {
		line[i] = 'x'
	}
	line[len(line)-1] = '\n'
	for range number(args, 0, 1024) * 16 {
		if _, err := os.Stdout.Write(line); err != nil {
			os.Exit(3)
		}
	}
}

func sleepForever([]string) { time.Sleep(time.Hour) }
