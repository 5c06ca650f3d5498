package job

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"github.com/nucleus-runtime/nucleus/core/job/internal/grammar"
	"github.com/nucleus-runtime/nucleus/core/job/internal/hclread"
)

// Names gives the names of a file's jobs as far as they can be told without the values
// of its variables, in file order.
func Names(filename string, src []byte) ([]string, hcl.Diagnostics) {
	body, diags := hclread.ParseFile(filename, src)
	if diags.HasErrors() || body == nil {
		return nil, diags
	}
	var names []string
	for _, b := range body.Blocks {
		if b.Type == "job" && len(b.Labels) == 1 && grammar.IsName(b.Labels[0]) {
			names = append(names, b.Labels[0])
		}
	}
	return names, diags
}

// NameOfFile makes a name of a file's, without its extension: "stack" of "./stack.hcl".
func NameOfFile(path string) string {
	return grammar.NameOf(strings.TrimSuffix(path, filepath.Ext(path)))
}

// NameProblem says what is wrong with a name of a job, a sandbox or a stack, and what to
// write, "" if nothing.
func NameProblem(name string) string { return grammar.NameProblem(name) }

// EnvProblem says what is wrong with the name of an environment variable: a summary and what
// to write instead, both "" if nothing.
func EnvProblem(name string) (summary, detail string) { return grammar.EnvProblem(name) }

func labels(blocks []hclread.Block) []string {
	names := make([]string, 0, len(blocks))
	for _, b := range blocks {
		names = append(names, b.Label)
	}
	return names
}

func (d *decoder) dependsOn(b hclread.Block) {
	dep := Dependency{Condition: ConditionStarted}
	d.r.Read(b, hclread.Schema{
		Attrs: []hclread.Attr{
			{Name: "job", Required: `job = "db"`, Read: func(v hclread.Value) { dep.Job, _ = v.String() }},
			{Name: "condition", Read: func(v hclread.Value) {
				if s, ok := v.Enum(string(ConditionStarted), string(ConditionReady), string(ConditionExited)); ok {
					dep.Condition = Condition(s)
				}
			}},
		},
		Hints: map[string]string{"name": `Write job = "db".`, "jobs": `Write a block for each job: depends_on { job = "db" }.`},
	})
	d.j.DependsOn = append(d.j.DependsOn, dep)
}

// dependencies checks what jobs say of each other.
func (d *decoder) dependencies(blocks []hclread.Block, jobs []*Job) {
	g := waits{d: d, jobs: map[string]*Job{}, label: map[*Job]string{}, seen: map[*Job]visit{}}
	names := labels(blocks)
	for i, j := range jobs {
		g.jobs[names[i]], g.label[j] = j, names[i]
	}
	for i, j := range jobs {
		d.j = j // whose ranges are meant
		given := map[string]string{}
		for n, dep := range j.DependsOn {
			path := fmt.Sprintf("depends_on[%d]", n)
			at := d.at(path + ".job")
			on := g.jobs[dep.Job]
			switch {
			case dep.Job == "" && !d.given(path+".job"): // told already
			case dep.Job == names[i]:
				d.r.Error(at, "Job waits for itself", "A job starts when those that it depends on have: name another job, or remove the block.")
			case on == nil:
				others := append(append([]string{}, names[:i]...), names[i+1:]...)
				d.r.Error(at, "Unknown job", fmt.Sprintf("There is no job %s in this file.%s", hclread.Quote(dep.Job), hclread.SuggestOr(dep.Job, others)))
			case given[dep.Job] != "":
				d.r.Error(at, "Dependency given twice", fmt.Sprintf("%s is waited for already (%s): keep one block, with the condition that comes last.", hclread.Quote(dep.Job), j.Where(given[dep.Job])))
			case dep.Condition == ConditionReady && on.Readiness == nil:
				d.r.Error(d.at(path+".condition"), "Job without a readiness block", fmt.Sprintf(
					"Nothing tells when %s is ready: give it a readiness block (%s), or write condition = \"started\".", hclread.Quote(dep.Job), on.Where("job")))
			}
			given[dep.Job] = path
		}
	}
	for _, j := range jobs {
		g.walk(j)
	}
}

// waits finds jobs that wait for each other.
type waits struct {
	d     *decoder
	jobs  map[string]*Job
	label map[*Job]string
	seen  map[*Job]visit
	path  []step
}

type visit int

const (
	underWay visit = iota + 1
	done
)

// step is a job and which of its dependencies is being looked at.
type step struct {
	job *Job
	dep int
}

func (g *waits) walk(j *Job) {
	if g.seen[j] != 0 {
		return
	}
	g.seen[j] = underWay
	g.path = append(g.path, step{job: j})
	for n, dep := range j.DependsOn {
		g.path[len(g.path)-1].dep = n
		switch on := g.jobs[dep.Job]; {
		case on == nil || on == j: // told already
		case g.seen[on] == underWay:
			g.circle(on)
		default:
			g.walk(on)
		}
	}
	g.path = g.path[:len(g.path)-1]
	g.seen[j] = done
}

// circle reports the part of the path from j to its end, which waits for j.
func (g *waits) circle(j *Job) {
	from := 0
	for g.path[from].job != j {
		from++
	}
	var text strings.Builder
	for i, s := range g.path[from:] {
		if i > 0 {
			text.WriteString(", ")
		}
		fmt.Fprintf(&text, "%s waits for %s (line %d)", hclread.Quote(g.label[s.job]), hclread.Quote(s.job.DependsOn[s.dep].Job), s.line())
	}
	last := g.path[len(g.path)-1]
	at, _ := last.job.Range(fmt.Sprintf("depends_on[%d].job", last.dep))
	g.d.r.Error(at, "Jobs wait for each other", fmt.Sprintf("None of them could start: %s. Remove one of these depends_on blocks.", text.String()))
}

func (s step) line() int {
	at, _ := s.job.Range(fmt.Sprintf("depends_on[%d].job", s.dep))
	return at.Start.Line
}
