package pluginhost

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/plainfile"
	"github.com/nucleus-runtime/nucleus/internal/procstatus"
)

// verify compares what the kernel says of a process with what it was started as, before
// anything is said to it. What was given capabilities may change what it is, and is
// compared with nothing. The process is our child and was not waited for, or its number
// could be another's.
func (l *launch) verify(pid int) error {
	if len(l.caps) > 0 {
		return nil
	}
	var bad []string
	check := func(what, got, want string) {
		if got != want {
			bad = append(bad, fmt.Sprintf("%s is %s, want %s", what, got, want))
		}
	}
	status, err := statusOf(strconv.Itoa(pid))
	if err != nil && !l.apart && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)) {
		// It is not dumpable already, and where /proc is mounted with hidepid that takes it out of
		// its user's sight. A process that can do that has come through all of its steps.
		return nil
	}
	if err != nil {
		return err
	}
	if state := status.Get("State"); strings.HasPrefix(state, "Z") || strings.HasPrefix(state, "X") {
		return nil // it has ended, which is what is told of it
	}
	own, err := statusOf("self")
	if err != nil {
		return err
	}
	uids, gids := own.Get("Uid"), own.Get("Gid")
	if l.switchU {
		uids, gids = procstatus.Four(l.uid), procstatus.Four(l.gid)
	}
	check("its uid", status.Get("Uid"), uids)
	check("its gid", status.Get("Gid"), gids)
	const none = "0000000000000000"
	sets := []string{"CapInh", "CapPrm", "CapEff", "CapAmb"}
	if l.apart {
		sets = append(sets, "CapBnd")
	}
	for _, set := range sets {
		check(set, status.Get(set), none)
	}
	check("its no_new_privs", status.Get("NoNewPrivs"), "1")
	if n := len(l.box.filters()); n > 0 {
		check("its seccomp mode", status.Get("Seccomp"), "2")
		// It may have added some. A kernel before 5.9 counts none.
		before, uncounted := strconv.Atoi(own.Get("Seccomp_filters"))
		now, _ := strconv.Atoi(status.Get("Seccomp_filters"))
		if uncounted == nil && now < before+n {
			bad = append(bad, fmt.Sprintf("it has %d seccomp filters, want %d", now, before+n))
		}
	}
	if l.apart {
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", pid))
		ours, oerr := os.Readlink("/proc/self/ns/user")
		uidMap, uerr := plainfile.Read(fmt.Sprintf("/proc/%d/uid_map", pid))
		gidMap, gerr := plainfile.Read(fmt.Sprintf("/proc/%d/gid_map", pid))
		if err := errors.Join(err, oerr, uerr, gerr); err != nil {
			return fmt.Errorf("reading its posture: %w", err)
		}
		if theirs == ours {
			bad = append(bad, "its user namespace is ours")
		}
		check("its uid_map", strings.Join(strings.Fields(string(uidMap)), " "), fmt.Sprintf("%d %d 1", l.uid, l.uid))
		check("its gid_map", strings.Join(strings.Fields(string(gidMap)), " "), fmt.Sprintf("%d %d 1", l.gid, l.gid))
	}
	if len(bad) > 0 {
		return errors.New("the posture of its process is not the planned one: " + strings.Join(bad, "; "))
	}
	return nil
}

func statusOf(pid string) (procstatus.Text, error) {
	b, err := plainfile.Read("/proc/" + pid + "/status")
	if err != nil {
		return nil, fmt.Errorf("reading its posture: %w", err)
	}
	return procstatus.Text(b), nil
}
