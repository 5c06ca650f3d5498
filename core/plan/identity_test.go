package plan

import (
	"fmt"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"pgregory.net/rapid"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
	"github.com/nucleus-runtime/nucleus/core/job"
)

func TestIdentity(t *testing.T) {
	rootfs := []string{`rootfs {`, `path = "/r"`, `}`}
	for _, c := range []struct {
		name  string
		lines []string
		want  string // uid:gid groups home user
	}{
		{"none", nil, "0:0 [] /root root"},
		{"a name", []string{`user = "app"`}, "1001:1002 [] /home/app app"},
		{"a name of a rootfs has its home", append([]string{`user = "app"`}, rootfs...), "1001:1002 [] /srv/app app"},
		{"a home with .. is not taken", append([]string{`user = "lost"`}, rootfs...), "1003:1003 [] /home/lost lost"},
		{"a uid that has a name", []string{`user = "1001"`}, "1001:1002 [] /home/app app"},
		{"a uid that has none", []string{`user = "4242"`}, "4242:4242 [] /home/user user"},
		{"uid 0 without passwd entry", append([]string{`user = "0"`}, rootfs...), "0:0 [] /root root"},
		{"a group by name", []string{`user = "app:staff"`}, "1001:50 [] /home/app app"},
		{"a group by number", []string{`user = "app:7"`}, "1001:7 [] /home/app app"},
		{"groups", []string{`user = "app"`, `groups = ["staff", 2000]`}, "1001:1002 [50 2000] /home/app app"},
		{"the primary group is no supplementary one", []string{`user = "app"`, `groups = ["app", "staff"]`}, "1001:1002 [50] /home/app app"},
		{"a broken line is no account", []string{`user = "1003"`}, "1003:1003 [] /home/lost lost"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := mustPlan(t, jobOf(t, c.lines...), rootV2())
			env := map[string]string{}
			for _, kv := range p.Process.Env {
				k, v, _ := cut(kv)
				env[k] = v
			}
			u := p.Process.User
			got := fmt.Sprintf("%d:%d %v %s %s", u.UID, u.GID, u.AdditionalGids, env["HOME"], env["USER"])
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			if m, ok := findMount(p, env["HOME"]); !ok || m.UID != u.UID || m.Mode != 0o700 {
				t.Errorf("HOME is %+v", m)
			}
		})
	}
}

func cut(kv string) (string, string, bool) {
	i := slices.Index([]byte(kv), '=')
	return kv[:i], kv[i+1:], true
}

func TestMapKinds(t *testing.T) {
	sub := with(asUser, withSubID)
	for _, c := range []struct {
		name  string
		host  fact.Host
		lines []string
		want  string // kind helpers setgroups uids
	}{
		{"root takes a free range", with(), nil, "range false true [{0 524288 65536}]"},
		{"a user needs no set-up", with(asUser), nil, "single false false [{0 1000 1}]"},
		{"a user who is somebody else inside", with(asUser), []string{`user = "app"`}, "single false false [{1001 1000 1}]"},
		{"a range is not used without need", sub, nil, "single false false [{0 1000 1}]"},
		{"another user takes the range", sub, []string{`user = "app"`}, "range true true [{1001 1000 1} {0 100000 1001} {1002 101001 64534}]"},
		{"groups take the range", sub, []string{`groups = [5]`}, "range true true [{0 1000 1} {1 100000 65535}]"},
		{"keep-id", sub, []string{`namespaces {`, `user = "keep-id"`, `}`, `user = "1000"`}, "keep true true [{1000 1000 1} {0 100000 1000} {1001 101000 64535}]"},
		{"keep-id without a range", with(asUser), []string{`namespaces {`, `user = "keep-id"`, `}`, `user = "1000:1000"`}, "keep false false [{1000 1000 1}]"},
		{"as root with the host's ids", with(), []string{`namespaces {`, `user = "host"`, `}`}, "none false true []"},
		{"the longest range is taken", with(asUser, func(h *fact.Host) {
			h.SubUID = []fact.IDRange{{Start: 50, Count: 10}, {Start: 300000, Count: 65536}}
			h.SubGID = h.SubUID
		}), []string{`user = "1"`}, "range true true [{1 1000 1} {0 300000 1} {2 300001 65534}]"},
		{"an id of the caller's own in its range", with(asUser, func(h *fact.Host) {
			h.SubUID = []fact.IDRange{{Start: 990, Count: 20}}
			h.SubGID = h.SubUID
		}), []string{`user = "1"`}, "range true true [{1 1000 1} {0 990 1} {2 991 9}]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := mustPlan(t, jobOf(t, c.lines...), c.host)
			got := fmt.Sprint(p.IDs.Kind, " ", p.IDs.Helpers, " ", p.IDs.SetGroups, " ", p.IDs.UIDs)
			if got != c.want {
				t.Errorf("got %s\nwant %s", got, c.want)
			}
		})
	}
}

// TestPropertiesOfMaps holds for any host and any identity for which there is a
// plan at all.
func TestPropertiesOfMaps(t *testing.T) {
	id := rapid.OneOf(rapid.Just(uint32(0)), rapid.Uint32Range(1, 70000), rapid.Uint32Range(0, 1<<32-2))
	subs := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) fact.IDRange {
		start := rapid.OneOf(rapid.Uint32Range(1, 2000), rapid.Uint32Range(1, 1<<31)).Draw(t, "start")
		return fact.IDRange{Start: start, Count: rapid.Uint32Range(1, 200000).Draw(t, "count")}
	}), 0, 3)
	rapid.Check(t, func(t *rapid.T) {
		h := rootV2()
		h.EUID, h.EGID = int(id.Draw(t, "euid")), int(id.Draw(t, "egid"))
		h.Privileged = rapid.Bool().Draw(t, "privileged")
		if h.Privileged {
			h.EUID = 0
		}
		h.UserNS = !h.Privileged && rapid.Bool().Draw(t, "in a container")
		h.SubUID, h.SubGID = subs.Draw(t, "subuid"), subs.Draw(t, "subgid")
		mode := rapid.SampledFrom([]job.Mode{job.ModeAgent, job.ModeStrictAgent}).Draw(t, "mode")
		uid, gid := id.Draw(t, "uid"), id.Draw(t, "gid")
		j := &job.Job{
			Name: "x", Mode: mode, Command: []string{"/bin/true"}, Init: true, User: fmt.Sprintf("%d:%d", uid, gid),
			Namespaces: job.Namespaces{User: rapid.SampledFrom([]string{"auto", "keep-id"}).Draw(t, "user")}, Network: job.Network{Backend: "none"},
		}
		if g := rapid.SliceOfN(rapid.Uint32Range(0, 3000), 0, 2).Draw(t, "groups"); len(g) > 0 {
			for _, x := range g {
				j.Groups = append(j.Groups, fmt.Sprint(x))
			}
		}
		p, err := Make(j, inputs(h))
		if err != nil {
			return
		}
		checkMap(t, p.IDs.UIDs, mode.Strict() && !h.UserNS)
		checkMap(t, p.IDs.GIDs, mode.Strict() && !h.UserNS)
		if _, ok := HostID(p.IDs.UIDs, uid); !ok {
			t.Fatalf("uid %d is not mapped by %v", uid, p.IDs.UIDs)
		}
		if _, ok := HostID(p.IDs.GIDs, gid); !ok {
			t.Fatalf("gid %d is not mapped by %v", gid, p.IDs.GIDs)
		}
		if !h.Privileged && !p.IDs.Helpers {
			// What the kernel takes from a process without privilege.
			if len(p.IDs.UIDs) != 1 || p.IDs.UIDs[0].Size != 1 || p.IDs.UIDs[0].HostID != uint32(h.EUID) || p.IDs.SetGroups {
				t.Fatalf("without helpers: %+v", p.IDs)
			}
		}
	})
}

func checkMap(t *rapid.T, maps []specs.LinuxIDMapping, strict bool) {
	total := uint64(0)
	for i, a := range maps {
		total += uint64(a.Size)
		if a.Size == 0 || uint64(a.ContainerID)+uint64(a.Size) > 1<<32 || uint64(a.HostID)+uint64(a.Size) > 1<<32 {
			t.Fatalf("line %v of %v", a, maps)
		}
		if strict && a.HostID == 0 {
			t.Fatalf("the host's root is mapped in a strict mode: %v", maps)
		}
		for _, b := range maps[:i] {
			if overlap(a.ContainerID, a.Size, b.ContainerID, b.Size) || overlap(a.HostID, a.Size, b.HostID, b.Size) {
				t.Fatalf("%v and %v overlap", a, b)
			}
		}
	}
	if total > idRange {
		t.Fatalf("%d ids are mapped: %v", total, maps)
	}
}

func overlap(a, an, b, bn uint32) bool {
	return uint64(a) < uint64(b)+uint64(bn) && uint64(b) < uint64(a)+uint64(an)
}

// TestHostIDIsTheMapReadBackwards: each id inside stands for one outside.
func TestHostIDIsTheMapReadBackwards(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sub := fact.IDRange{Start: rapid.Uint32Range(70000, 1<<30).Draw(t, "start"), Count: rapid.Uint32Range(1, 300).Draw(t, "count")}
		inside := rapid.Uint32Range(0, 400).Draw(t, "inside")
		maps := around(inside, 1000, sub)
		seen := map[uint32]uint32{}
		for id := range uint32(500) {
			host, ok := HostID(maps, id)
			if !ok {
				continue
			}
			if other, twice := seen[host]; twice {
				t.Fatalf("%d and %d are both %d", other, id, host)
			}
			seen[host] = id
		}
		if len(seen) != int(sub.Count)+1 || seen[1000] != inside {
			t.Fatalf("%d ids of %d, the caller is %d", len(seen), sub.Count+1, seen[1000])
		}
	})
}
