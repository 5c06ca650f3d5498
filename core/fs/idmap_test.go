package fs

import (
	"fmt"
	"slices"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"pgregory.net/rapid"

	"github.com/nucleus-runtime/nucleus/core/plan"
)

func TestSwapped(t *testing.T) {
	sandbox := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	for _, c := range []struct {
		name         string
		maps         []specs.LinuxIDMapping
		disk, inside uint32
		want         string
	}{
		{"two ids of one line", sandbox, 1000, 0, "1000>100000 0>101000 1..999>100001 1001..65535>101001"},
		{"neighbours", sandbox, 1, 0, "1>100000 0>100001 2..65535>100002"},
		{"the owner is the host's root", sandbox, 0, 1000, "0>101000 1000>100000 1..999>100001 1001..65535>101001"},
		{"the owner is nobody of the sandbox", sandbox, 70000, 0, "70000>100000 1..65535>100001"},
		{"one id", []specs.LinuxIDMapping{{ContainerID: 5, HostID: 1000, Size: 1}}, 1000, 5, "1000>1000"},
		{"several lines", []specs.LinuxIDMapping{{ContainerID: 1000, HostID: 1000, Size: 1}, {ContainerID: 0, HostID: 100000, Size: 1000}}, 3, 1000, "3>1000 1000>100003 0..2>100000 4..999>100004"},
	} {
		if got := mapText(swapped(c.maps, c.disk, c.inside)); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

func mapText(maps []syscall.SysProcIDMap) string {
	s := ""
	for _, m := range maps {
		if s != "" {
			s += " "
		}
		if m.Size > 1 {
			s += fmt.Sprintf("%d..%d>%d", m.ContainerID, m.ContainerID+m.Size-1, m.HostID)
		} else {
			s += fmt.Sprintf("%d>%d", m.ContainerID, m.HostID)
		}
	}
	return s
}

// sandboxMaps are maps as the kernel takes them: nothing stands twice.
func sandboxMaps(t *rapid.T) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	inside, outside := uint32(0), uint32(100000)
	for range rapid.IntRange(1, 4).Draw(t, "lines") {
		inside += rapid.Uint32Range(0, 5).Draw(t, "gap inside")
		outside += rapid.Uint32Range(0, 5).Draw(t, "gap outside")
		size := rapid.Uint32Range(1, 12).Draw(t, "size")
		out = append(out, specs.LinuxIDMapping{ContainerID: inside, HostID: outside, Size: size})
		inside, outside = inside+size, outside+size
	}
	return out
}

// TestPropertiesOfSwapped: it is a bijection onto the ids that the sandbox has,
// and differs from the sandbox's own map in the two exchanged ids alone.
func TestPropertiesOfSwapped(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		maps := sandboxMaps(t)
		var ids []uint32
		hosts := map[uint32]bool{}
		for _, m := range maps {
			for i := range m.Size {
				ids = append(ids, m.ContainerID+i)
				hosts[m.HostID+i] = true
			}
		}
		inside := rapid.SampledFrom(ids).Draw(t, "the workload's id")
		disk := rapid.OneOf(rapid.SampledFrom(ids), rapid.Uint32Range(0, 80), rapid.Just(uint32(1<<32-2))).Draw(t, "the owner on disk")
		got := map[uint32]uint32{}
		taken := map[uint32]bool{}
		for _, m := range swapped(maps, disk, inside) {
			if m.Size <= 0 {
				t.Fatalf("an empty line in %v", swapped(maps, disk, inside))
			}
			for i := range uint32(m.Size) {
				from, to := uint32(m.ContainerID)+i, uint32(m.HostID)+i
				if _, twice := got[from]; twice || taken[to] {
					t.Fatalf("%d or %d stands twice in %v", from, to, swapped(maps, disk, inside))
				}
				got[from], taken[to] = to, true
			}
		}
		if len(got) != len(ids) {
			t.Fatalf("%d ids are mapped, the sandbox has %d", len(got), len(ids))
		}
		for to := range taken {
			if !hosts[to] {
				t.Fatalf("id %d outside is none of the sandbox's", to)
			}
		}
		if want, _ := plan.HostID(maps, inside); got[disk] != want {
			t.Fatalf("the owner %d becomes %d, the workload is %d", disk, got[disk], want)
		}
		if slices.Contains(ids, disk) {
			if want, _ := plan.HostID(maps, disk); got[inside] != want {
				t.Fatalf("%d on disk becomes %d, want %d", inside, got[inside], want)
			}
		} else if _, ok := got[inside]; ok && inside != disk {
			t.Fatalf("%d on disk is mapped beside the owner", inside)
		}
		for _, id := range ids {
			if want, _ := plan.HostID(maps, id); id != disk && id != inside && got[id] != want {
				t.Fatalf("%d, which nobody exchanges, becomes %d, want %d", id, got[id], want)
			}
		}
	})
}
