package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// idleReply is what Count idle sandboxes cost, each, in KiB. Support is every
// process that stays for the sandbox beside its payload.
type idleReply struct {
	SupportPSS, PayloadPSS float64
	SupportProcesses       float64
	// Kernel is the growth of slab, stacks, page tables and per-CPU memory;
	// Available the loss of MemAvailable: everything, and noisy.
	Kernel, Available float64
	// Unreadable counts processes whose memory this user may not look into.
	Unreadable int
}

// payloadArgs is what every sandbox runs in the idle measurement.
var payloadArgs = []string{"/bin/sleep", "100000"}

func measureIdle(req request) (r idleReply, err error) {
	s, err := newStarter(req)
	if err != nil {
		return idleReply{}, err
	}
	defer s.close()
	stop, err := s.adopt()
	if err != nil {
		return idleReply{}, err
	}
	defer stop()
	before, err := readMemory()
	if err != nil {
		return idleReply{}, err
	}
	defer func() { err = errors.Join(err, s.endAll()) }()
	for n := range req.Count {
		start, err := s.prepare(n)
		if err != nil {
			return idleReply{}, err
		}
		if _, err := start(); err != nil {
			return idleReply{}, err
		}
	}
	if err := s.waitForPayloads(); err != nil {
		return idleReply{}, err
	}
	time.Sleep(2 * time.Second) // for what start-up leaves to the kernel's background
	after, err := readMemory()
	if err != nil {
		return idleReply{}, err
	}
	reap() // what ended on the way up would count as a process without memory
	each := float64(req.Count)
	for _, pid := range descendants() {
		pss, err := readPSS(pid)
		switch {
		case err != nil:
			r.Unreadable++
		case isPayload(pid):
			r.PayloadPSS += pss / each
		default:
			r.SupportPSS += pss / each
		}
		if !isPayload(pid) {
			r.SupportProcesses += 1 / each
		}
	}
	r.Kernel = (after.kernel - before.kernel) / each
	r.Available = (before.available - after.available) / each
	return r, nil
}

// adopt lets orphans of killed runtimes come to us, to be counted and ended; at other
// times they are not ours to collect.
func (s *starter) adopt() (stop func(), err error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, os.NewSyscallError("prctl", err)
	}
	return func() {
		_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) // it worked a moment ago
	}, nil
}

func (s *starter) waitForPayloads() error {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		running := 0
		for _, pid := range descendants() {
			if isPayload(pid) {
				running++
			}
		}
		if running == s.req.Count {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d sandboxes run: %s", running, s.req.Count, s.complaint())
		}
	}
}

// endAll asks the launched programs to end, kills what is left, and lets the
// runtime forget its sandboxes.
func (s *starter) endAll() error {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		for _, pid := range descendants() {
			if signal == syscall.SIGKILL || parentOf(pid) == os.Getpid() {
				_ = syscall.Kill(pid, signal) // gone by itself is as good
			}
		}
		for deadline := time.Now().Add(3 * time.Second); reap() && time.Now().Before(deadline); {
			time.Sleep(20 * time.Millisecond)
		}
	}
	if len(s.req.Command.Cleanup) > 0 {
		for n := range s.req.Count {
			argv := withID(s.req.Command.Cleanup, s.req.Serial, n)
			cmd := exec.Command(argv[0], argv[1:]...)
			cmd.Env = s.req.Command.Env
			if s.req.UID != 0 {
				cmd.SysProcAttr = credential(s.req.UID, s.req.GID)
			}
			_ = cmd.Run() // it fails where the runtime has cleaned up itself
		}
	}
	if left := descendants(); len(left) > 0 {
		return fmt.Errorf("%d processes cannot be ended", len(left))
	}
	return nil
}

// reap collects the dead and tells whether children are left.
func reap() bool {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if err != nil {
			return false // ECHILD
		}
		if pid == 0 {
			return true
		}
	}
}

// descendants walks the children files that the kernel keeps per thread.
func descendants() []int {
	var found []int
	for todo := []int{os.Getpid()}; len(todo) > 0; {
		pid := todo[0]
		todo = todo[1:]
		lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
		for _, list := range lists {
			text, _ := os.ReadFile(list) // gone meanwhile
			for _, field := range strings.Fields(string(text)) {
				if child, err := strconv.Atoi(field); err == nil {
					found = append(found, child)
					todo = append(todo, child)
				}
			}
		}
	}
	return found
}

func parentOf(pid int) int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "PPid:"); ok {
			parent, _ := strconv.Atoi(strings.TrimSpace(value))
			return parent
		}
	}
	return 0
}

func isPayload(pid int) bool {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	argv := strings.Split(strings.TrimRight(string(text), "\x00"), "\x00")
	return slices.Equal(argv, payloadArgs)
}

func readPSS(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	return sumFields(text, "Pss:"), nil
}

type memory struct{ kernel, available float64 }

// readMemory takes the median of a few looks: the counters jump about.
func readMemory() (memory, error) {
	var kernel, available []float64
	for range 5 {
		text, err := os.ReadFile("/proc/meminfo")
		if err != nil {
			return memory{}, err
		}
		kernel = append(kernel, sumFields(text, "Slab:", "KernelStack:", "PageTables:", "SecPageTables:", "Percpu:"))
		available = append(available, sumFields(text, "MemAvailable:"))
		time.Sleep(100 * time.Millisecond)
	}
	return memory{quantile(kernel, 0.5), quantile(available, 0.5)}, nil
}

// sumFields adds up the lines "Name:  N kB" with these names.
func sumFields(text []byte, names ...string) float64 {
	sum := 0.0
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) > 1 && slices.Contains(names, fields[0]) {
			value, _ := strconv.ParseFloat(fields[1], 64)
			sum += value
		}
	}
	return sum
}
