package host

import (
	"bytes"
	"errors"
	"fmt"
	"sort"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

const (
	subIDStart = 100000 // where useradd starts to give out subordinate ids
	subIDCount = 65536
	// maxID excludes 2^32-1, which the kernel keeps for "no id".
	maxID = 1<<32 - 1
)

// readSubIDs fills in the caller's ranges and the first free block, and says
// whether subordinate ids are surely out of reach (else the state is Unknown:
// only a probe can tell that they work).
func readSubIDs(r root, h *fact.Host, ns userNS) fact.Feature {
	uids, errU := readSubIDFile(r, "/etc/subuid")
	gids, errG := readSubIDFile(r, "/etc/subgid")
	if errU == nil && errG == nil {
		h.FreeSubID = freeBlock(append(append([]subIDLine(nil), uids...), gids...), ns)
	}
	h.SubUID = rangesOf(uids, h.UserName, h.EUID)
	h.SubGID = rangesOf(gids, h.UserName, h.EUID)

	if err := errors.Join(errU, errG); err != nil {
		return fact.Feature{
			Name: featSubID, State: fact.Unavailable, Since: since(featSubID),
			Why: "the list of subordinate ids is unusable: " + firstLine(err), Remedy: "repair /etc/subuid and /etc/subgid",
		}
	}
	if h.Privileged {
		if h.FreeSubID.Count == 0 {
			return unusable(featSubID, "no block of 65536 ids is free in /etc/subuid and /etc/subgid",
				"free a range there, or give an explicit uid_map and gid_map in the job")
		}
		return fact.Feature{Name: featSubID}
	}
	for _, m := range []struct {
		file   string
		ranges []fact.IDRange
	}{{"/etc/subuid", h.SubUID}, {"/etc/subgid", h.SubGID}} {
		if len(m.ranges) > 0 {
			continue
		}
		who := h.UserName
		if who == "" {
			who = strconv.Itoa(h.EUID)
		}
		return unusable(featSubID, fmt.Sprintf("%s gives no range to %q", m.file, who), grantRemedy(who, h.FreeSubID))
	}
	return fact.Feature{Name: featSubID}
}

func grantRemedy(who string, free fact.IDRange) string {
	if free.Count == 0 {
		return "ask for a range of 65536 ids in /etc/subuid and /etc/subgid"
	}
	last := uint64(free.Start) + uint64(free.Count) - 1
	return fmt.Sprintf("sudo usermod --add-subuids %d-%d --add-subgids %d-%d %s",
		free.Start, last, free.Start, last, who)
}

type subIDLine struct {
	owner        string
	start, count uint64
}

func (l subIDLine) end() uint64 { return l.start + l.count }

// readSubIDFile parses NAME:START:COUNT lines. A missing file has no lines;
// a line that is malformed is skipped, as newuidmap skips it.
func readSubIDFile(r root, path string) ([]subIDLine, error) {
	b, err := r.read(path, maxAccounts)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []subIDLine
	for len(b) > 0 {
		var line []byte
		line, b, _ = bytes.Cut(b, []byte{'\n'})
		f := bytes.Split(bytes.TrimSpace(line), []byte{':'})
		if len(f) != 3 || len(f[0]) == 0 || f[0][0] == '#' {
			continue
		}
		start, err1 := strconv.ParseUint(string(f[1]), 10, 32)
		count, err2 := strconv.ParseUint(string(f[2]), 10, 32)
		if err1 != nil || err2 != nil || count == 0 || start+count > maxID {
			continue
		}
		out = append(out, subIDLine{string(f[0]), start, count})
	}
	return out, nil
}

// rangesOf prefers the login name's lines and falls back to the numeric uid's,
// for users whose directory service has no stable name.
func rangesOf(lines []subIDLine, name string, uid int) []fact.IDRange {
	pick := func(owner string) (out []fact.IDRange) {
		for _, l := range lines {
			if l.owner == owner {
				out = append(out, fact.IDRange{Start: uint32(l.start), Count: uint32(l.count)})
			}
		}
		return out
	}
	if name != "" {
		if out := pick(name); out != nil {
			return out
		}
	}
	return pick(strconv.Itoa(uid))
}

// freeBlock is the first block of 65536 ids, counted from 100000 in whole
// blocks as useradd does, that no line touches and that our own user namespace
// can give away. The zero range means that there is none.
func freeBlock(lines []subIDLine, ns userNS) fact.IDRange {
	sort.Slice(lines, func(i, j int) bool { return lines[i].start < lines[j].start })
	at := uint64(subIDStart)
	for _, l := range lines {
		if l.end() <= at {
			continue
		}
		if l.start >= at+subIDCount {
			break
		}
		at = subIDStart + (l.end()-subIDStart+subIDCount-1)/subIDCount*subIDCount
	}
	if at+subIDCount > maxID {
		return fact.IDRange{}
	}
	if ns.known && !(covers(ns.uids, at, subIDCount) && covers(ns.gids, at, subIDCount)) {
		return fact.IDRange{}
	}
	return fact.IDRange{Start: uint32(at), Count: subIDCount}
}
