package job

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/zclconf/go-cty/cty"

	"github.com/nucleus-runtime/nucleus/core/job/internal/grammar"
	"github.com/nucleus-runtime/nucleus/core/job/internal/hclread"
)

const minRootfsSize = 1 << 20

func (d *decoder) resources(b hclread.Block) {
	r := &d.j.Resources
	d.r.Read(b, hclread.Schema{
		Attrs: []hclread.Attr{
			{Name: "memory", Read: size(&r.Memory, grammar.MinMemory)},
			{Name: "memory_high", Read: size(&r.MemoryHigh, grammar.MinMemory)},
			{Name: "swap", Read: size(&r.Swap, 0)},
			{Name: "cpus", Read: func(v hclread.Value) { r.CPUs, _ = v.Float(grammar.MinCPUs, grammar.MaxCPUs) }},
			{Name: "cpu_weight", Read: func(v hclread.Value) { r.CPUWeight = count(v, 1, 10000) }},
			{Name: "pids", Read: func(v hclread.Value) {
				if n, ok := v.Int(1, grammar.MaxPids); ok {
					r.Pids = &n
				}
			}},
			{Name: "rootfs_size", Read: size(&r.RootfsSize, minRootfsSize)},
		},
		Blocks: []hclread.Nested{
			{Name: "io", Label: "a block device", Many: true, Unique: true, Read: d.io},
			{Name: "rlimit", Label: "the name of a limit", Many: true, Unique: true, Read: d.rlimit},
		},
		Hints: map[string]string{
			"cpu": "Write cpus = 1.5.", "mem": `Write memory = "512MiB".`, "memory_swap": `Write swap = "256MiB"; it counts beyond memory.`,
			"ulimit": `Write rlimit "nofile" { soft = 1024 }.`,
		},
	})
}

func count(v hclread.Value, low, high int64) uint64 {
	n, ok := v.Int(low, high)
	if !ok {
		return 0
	}
	return uint64(n)
}

func (d *decoder) io(b hclread.Block) {
	io := IO{Device: b.Label}
	if !isDevice(b.Label) {
		d.r.Error(b.LabelRange, "Not a block device", fmt.Sprintf("%s is no block device: write its path or its numbers, for instance io \"/dev/vda\" { ... } or io \"254:0\" { ... }.", hclread.Quote(b.Label)))
	}
	rate := func(dst *uint64) func(hclread.Value) {
		return func(v hclread.Value) {
			n, _ := v.Size(1)
			*dst = uint64(n)
		}
	}
	iops := func(dst *uint64) func(hclread.Value) {
		return func(v hclread.Value) { *dst = count(v, 1, math.MaxUint32) }
	}
	before := len(d.r.Diags)
	d.r.Read(b, hclread.Schema{Attrs: []hclread.Attr{
		{Name: "read_bps", Read: rate(&io.ReadBPS)},
		{Name: "write_bps", Read: rate(&io.WriteBPS)},
		{Name: "read_iops", Read: iops(&io.ReadIOPS)},
		{Name: "write_iops", Read: iops(&io.WriteIOPS)},
	}})
	if io == (IO{Device: b.Label}) && len(d.r.Diags) == before {
		d.r.Error(b.DefRange, "Limit without a value", `Write what is limited: read_bps = "100MiB", write_bps, read_iops = 500 or write_iops.`)
	}
	d.j.Resources.IO = append(d.j.Resources.IO, io)
}

func isDevice(s string) bool {
	if strings.HasPrefix(s, "/dev/") {
		return badSandboxPath(s) == ""
	}
	major, minor, ok := strings.Cut(s, ":")
	if !ok {
		return false
	}
	_, err1 := strconv.ParseUint(major, 10, 12)
	_, err2 := strconv.ParseUint(minor, 10, 20)
	return err1 == nil && err2 == nil
}

func (d *decoder) rlimit(b hclread.Block) {
	name := b.Label
	if !slices.Contains(grammar.RlimitNames(), name) {
		bare := strings.TrimPrefix(strings.ToLower(name), "rlimit_")
		d.r.Error(b.LabelRange, "Unknown rlimit", fmt.Sprintf("There is no limit %s.%s", hclread.Quote(name), hclread.SuggestOr(bare, grammar.RlimitNames())))
	}
	l := Rlimit{Type: name}
	soft, hard := false, false
	limit := func(dst *uint64, given *bool) func(hclread.Value) {
		return func(v hclread.Value) { *dst = rlimitValue(v, name); *given = true }
	}
	before := len(d.r.Diags)
	d.r.Read(b, hclread.Schema{Attrs: []hclread.Attr{
		{Name: "soft", Read: limit(&l.Soft, &soft)},
		{Name: "hard", Read: limit(&l.Hard, &hard)},
	}})
	switch {
	case len(d.r.Diags) > before:
		return
	case !soft && !hard:
		d.r.Error(b.DefRange, "Limit without a value", "Write soft = 1024, hard = 1024 or both; one alone stands for the other too.")
	case !soft:
		l.Soft = l.Hard
	case !hard:
		l.Hard = l.Soft
	case l.Soft > l.Hard:
		d.r.Error(d.at(b.Child("soft")), "Soft limit above hard limit", "The soft limit is at most the hard one: lower soft, or raise hard.")
	}
	d.j.Resources.Rlimits = append(d.j.Resources.Rlimits, l)
}

// rlimitValue is a number, "unlimited", or a size where the limit is bytes.
func rlimitValue(v hclread.Value, name string) uint64 {
	if v.Cty.Type() == cty.String {
		s := v.Cty.AsString()
		if s == "unlimited" {
			return math.MaxUint64
		}
		if slices.Contains([]string{"as", "core", "data", "fsize", "memlock", "msgqueue", "rss", "stack"}, name) {
			n, _ := v.Size(0)
			return uint64(n)
		}
		v.Error("Not a limit", fmt.Sprintf("%s is no limit of %s: write a number without quotes, or \"unlimited\".", hclread.Quote(s), name))
		return 0
	}
	return count(v, 0, math.MaxInt64)
}

// maxIDMapLines is the kernel's since 4.15.
const maxIDMapLines = 340

// idMap reads lines of "CONTAINER:HOST:SIZE".
func (d *decoder) idMap(v hclread.Value) []IDMap {
	es, ok := v.Elements()
	if !ok {
		return nil
	}
	lines, ok := v.Strings()
	if !ok {
		return nil
	}
	if len(lines) == 0 || len(lines) > maxIDMapLines {
		v.Error("Id map of wrong length", fmt.Sprintf("An id map has 1 to %d lines, for instance [\"0:100000:65536\"].", maxIDMapLines))
		return nil
	}
	out := make([]IDMap, 0, len(lines))
	for i, l := range lines {
		m, ok := parseIDMap(l)
		if !ok {
			es[i].Error("Not an id map", fmt.Sprintf("%s is no line of an id map: write FIRST-INSIDE:FIRST-OUTSIDE:COUNT, for instance \"0:100000:65536\", with all ids below 4294967295.", hclread.Quote(l)))
			continue
		}
		for j, o := range out {
			if overlap(m.Container, m.Size, o.Container, o.Size) || overlap(m.Host, m.Size, o.Host, o.Size) {
				es[i].Error("Id maps overlap", fmt.Sprintf("%s covers ids of %s: each id, inside and outside, may be in one line only.", hclread.Quote(l), hclread.Quote(lines[j])))
				break
			}
		}
		out = append(out, m)
	}
	return out
}

func parseIDMap(s string) (IDMap, bool) {
	parts := strings.Split(s, ":")
	if len(parts) != 3 {
		return IDMap{}, false
	}
	var n [3]uint64
	for i, p := range parts {
		var err error
		if n[i], err = strconv.ParseUint(p, 10, 32); err != nil {
			return IDMap{}, false
		}
	}
	const unmapped = 1<<32 - 1
	if n[2] == 0 || n[0]+n[2] > unmapped || n[1]+n[2] > unmapped {
		return IDMap{}, false
	}
	return IDMap{Container: uint32(n[0]), Host: uint32(n[1]), Size: uint32(n[2])}, true
}

func overlap(a, an, b, bn uint32) bool {
	return uint64(a) < uint64(b)+uint64(bn) && uint64(b) < uint64(a)+uint64(an)
}
