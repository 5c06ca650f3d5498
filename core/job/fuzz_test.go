package job

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// FuzzParse looks for inputs that crash or hang the parser, and for jobs that
// come with errors.
func FuzzParse(f *testing.F) {
	if a, err := txtar.ParseFile("testdata/diagnostics.txtar"); err == nil {
		for _, c := range a.Files {
			f.Add([]byte(wrapped(string(c.Data))))
		}
	}
	if full, err := os.ReadFile("../../examples/full.hcl"); err == nil {
		f.Add(full)
	}
	f.Add([]byte(stack))
	f.Add([]byte("job \"x\" {\n command = [<<A\n${<<B\n${\"${1}\"}\nB\n}\nA\n]\n}\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		start := time.Now()
		j, diags := Parse("job.hcl", src, Options{Dir: "/w", Vars: map[string]string{"v": string(src)}})
		if (j == nil) != diags.HasErrors() {
			t.Fatalf("job %v with %v", j, diags)
		}
		jobs, all := ParseAll("job.hcl", src, Options{Dir: "/w", Vars: map[string]string{"v": string(src)}})
		if (jobs == nil) != all.HasErrors() || j != nil && len(jobs) != 1 || len(jobs) == 1 && j == nil {
			t.Fatalf("%d jobs with %v, one by itself is %v with %v", len(jobs), all, j, diags)
		}
		for i, x := range jobs {
			one, diags := Parse("job.hcl", src, Options{Dir: "/w", Vars: map[string]string{"v": string(src)}, Job: x.Name})
			if one == nil || one.Name != x.Name || i > 0 && x.Name == jobs[0].Name {
				t.Fatalf("job %q of %d is %v with %v", x.Name, len(jobs), one, diags)
			}
			a, aerr := x.Digest(nil)
			b, berr := one.Digest(nil)
			if a != b || (aerr == nil) != (berr == nil) {
				t.Fatalf("job %q has the digests %s, %v and %s, %v", x.Name, a, aerr, b, berr)
			}
		}
		if took := time.Since(start); took > testutil.Patient(30*time.Second) {
			t.Fatalf("took %s", took)
		}
		if j != nil {
			if !strings.HasPrefix(j.Dir, "/") || len(j.Command) == 0 || j.Command[0] == "" || j.Name == "" || j.Mode == "" {
				t.Fatalf("incomplete job %+v", j)
			}
		}
	})
}

// TestHostileFiles are small files that would cost much, or overflow the
// stack, which can't be recovered from.
func TestHostileFiles(t *testing.T) {
	in := func(expr string) string { return "job \"x\" {\n  command = [\"/bin/true\", " + expr + "]\n}\n" }
	doubled := func(first, next string) string {
		var b strings.Builder
		b.WriteString("locals {\n  a0 = " + first + "\n")
		for i := range 60 {
			prev, cur := string(rune('a'+i/10))+string(rune('0'+i%10)), string(rune('a'+(i+1)/10))+string(rune('0'+(i+1)%10))
			b.WriteString("  " + cur + " = " + strings.ReplaceAll(next, "P", "local."+prev) + "\n")
		}
		return b.String() + "}\n" + in(`"x"`)
	}
	for name, src := range map[string]string{
		"too large":           strings.Repeat("#", 1<<20+1),
		"parentheses":         in(strings.Repeat("(", 500000)),
		"closed parentheses":  in(strings.Repeat("(", 100000) + "1" + strings.Repeat(")", 100000)),
		"lists":               in(strings.Repeat("[", 500000)),
		"objects":             in(strings.Repeat("{a=", 300000)),
		"blocks":              strings.Repeat("a {\n", 200000),
		"negations":           in(strings.Repeat("!", 900000) + "true"),
		"minus":               in(strings.Repeat("-", 900000) + "1"),
		"sums":                in(strings.Repeat("1+", 400000) + "1"),
		"conditions":          in(strings.Repeat("true?1:", 100000) + "1"),
		"templates":           in(strings.Repeat(`"${`, 200000)),
		"directives":          in(`"` + strings.Repeat("%{if true}", 50000) + `"`),
		"heredocs":            in(strings.Repeat("<<A\n${", 100000)),
		"indexes":             in("a" + strings.Repeat("[0]", 200000)),
		"splats":              in("a" + strings.Repeat("[*]", 200000)),
		"calls":               in(strings.Repeat("upper(", 150000)),
		"for in for":          in("[for a in range(1000): [for b in range(1000): [for c in range(1000): a]]]"),
		"splat of splats":     "locals {\n l = range(1000)\n}\n" + in("[for a in local.l: [for b in local.l: local.l[*]]][*][*][*]"),
		"doubled strings":     doubled(`"xxxxxxxxxxxxxxxx"`, `"${P}${P}"`),
		"doubled lists":       doubled(`["x"]`, `[P, P]`),
		"doubled maps":        doubled(`{ k = "x" }`, `{ a = P, b = P }`),
		"doubled and encoded": doubled(`["x"]`, `[jsonencode([P, P])]`),
		"joined":              in(`join(format("%1000d", 1), [for x in range(1024): format("%1000d", x)])`),
		"replaced":            in(`replace(join("", [for x in range(1024): "aaaaaaaaaaaaaaaa"]), "a", join("", [for x in range(1024): "b"]))`),
		"wide format":         in(`format("%1000000000d", 1)`),
		"wide format by text": in(`format("%.1000000000f", 1)`),
		"big number":          in("1e999999"),
		"big product":         in(strings.Repeat("1e4000*", 100) + "1"),
		"long number":         in(strings.Repeat("9", 300000)),
		"long list":           in(strings.Repeat("1,", 500000)),
		"many attributes":     "job \"x\" {\n" + strings.Repeat("a = 1\n", 30000) + "}\n",
		"many blocks":         "job \"x\" {\n" + strings.Repeat("a {}\n", 30000) + "}\n",
		"many locals":         "locals {\n" + manyLocals() + "}\n" + in(`"x"`),
		"many jobs":           manyJobs(),
		"NUL":                 "job \"x\x00\" {}",
		"not UTF-8":           "job \"x\xff\" {}",
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			j, diags := Parse("job.hcl", []byte(src), Options{Dir: "/w"})
			took := time.Since(start)
			if took > testutil.Patient(30*time.Second) {
				t.Errorf("took %s", took)
			}
			if j != nil || !diags.HasErrors() || len(diags) > 101 {
				t.Errorf("accepted: %d diagnostics", len(diags))
			}
			t.Logf("%s, %d diagnostics", took, len(diags))
		})
	}
}

// manyJobs wait for all that come after them.
func manyJobs() string {
	var b strings.Builder
	for i := range 300 {
		fmt.Fprintf(&b, "job \"j%d\" {\n command = [\"x\"]\n", i)
		for on := i + 1; on < min(300, i+90); on++ {
			fmt.Fprintf(&b, "depends_on {\njob=\"j%d\"\n}\n", on)
		}
		b.WriteString("}\n")
	}
	return b.String()
}

func manyLocals() string {
	var b strings.Builder
	for i := range 50000 {
		b.WriteString("  l" + strings.Repeat("x", i%5) + string(rune('a'+i%26)) + time.Duration(i).String() + " = 1\n")
	}
	return b.String()
}
