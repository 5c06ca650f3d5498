package plan

import (
	"fmt"
	"strconv"
	"strings"
)

// Accounts are the contents of /etc/passwd and /etc/group, nil if there are none.
type Accounts struct{ Passwd, Group []byte }

const (
	ownRoot      = "root:x:0:0:root:/root:/bin/sh\n"
	ownNobody    = "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
	groupRoot    = "root:x:0:\n"
	groupTTY     = "tty:x:5:\n"
	groupNogroup = "nogroup:x:65534:\n"
)

// OwnAccounts are what every sandbox has where its rootfs has no such files.
func OwnAccounts() Accounts {
	return Accounts{Passwd: []byte(ownRoot + ownNobody), Group: []byte(groupRoot + groupTTY + groupNogroup)}
}

// Resolve gives the ids of a USER[:GROUP] by the rules of a job's user: each is a name or
// a number, and without GROUP a user has the group that it has in passwd.
func (a Accounts) Resolve(s string) (uid, gid uint32, err error) {
	user, group, hasGroup := strings.Cut(s, ":")
	e, numeric, ok := a.user(user)
	switch {
	case ok:
		uid, gid = e.uid, e.gid
	case numeric:
		uid, gid = e.uid, e.uid
	default:
		return 0, 0, fmt.Errorf("user %q is not in the sandbox's /etc/passwd", user)
	}
	if hasGroup {
		if gid, ok = a.group(group); !ok {
			return 0, 0, fmt.Errorf("group %q is not in the sandbox's /etc/group", group)
		}
	}
	return uid, gid, nil
}

type passwdEntry struct {
	name, home string
	uid, gid   uint32
}

// user finds a login name or a uid. numeric tells that s is a number,
// found or not; its uid is then in the entry.
func (a Accounts) user(s string) (e passwdEntry, numeric, ok bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	numeric = err == nil
	if numeric {
		e.uid = uint32(n)
	}
	for line := range lines(a.Passwd) {
		f := strings.Split(line, ":")
		if len(f) < 6 {
			continue
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 != nil || err2 != nil {
			continue
		}
		if numeric && uid == n || !numeric && f[0] == s {
			return passwdEntry{name: f[0], home: f[5], uid: uint32(uid), gid: uint32(gid)}, numeric, true
		}
	}
	return e, numeric, false
}

func (a Accounts) group(s string) (uint32, bool) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return uint32(n), true
	}
	for line := range lines(a.Group) {
		f := strings.Split(line, ":")
		if len(f) >= 3 && f[0] == s {
			if n, err := strconv.ParseUint(f[2], 10, 32); err == nil {
				return uint32(n), true
			}
		}
	}
	return 0, false
}

// lines iterates over the lines of a file without its comments.
func lines(b []byte) func(func(string) bool) {
	return func(yield func(string) bool) {
		for s := string(b); s != ""; {
			line, rest, _ := strings.Cut(s, "\n")
			s = rest
			if line != "" && line[0] != '#' && !yield(line) {
				return
			}
		}
	}
}
