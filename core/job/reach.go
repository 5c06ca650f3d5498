package job

import (
	"fmt"
	"slices"

	"github.com/nucleus-runtime/nucleus/core/job/internal/hclread"
	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
)

// jobName takes the name of another job. Inside it is a name of the DNS.
func (d *decoder) jobName(v hclread.Value, s string) (string, bool) {
	n, err := dnsname.Parse(s)
	switch {
	case err != nil:
		v.Error("Not a name that can be asked for", fmt.Sprintf("%s is no name of the DNS: %s. Give the job another name.", hclread.Quote(s), err))
		return "", false
	case s == "localhost":
		v.Error("Not a name that can be asked for", "localhost is the sandbox itself: give the job another name.")
		return "", false
	}
	return string(n), true
}

// reachable checks which jobs others want to reach.
func (d *decoder) reachable(blocks []hclread.Block, jobs []*Job) {
	names := labels(blocks)
	for i, j := range jobs {
		if j.Network.Egress == nil {
			continue
		}
		d.j = j // whose ranges are meant
		for n, r := range j.Network.Egress.Allow {
			for _, name := range r.Jobs {
				at := d.at(fmt.Sprintf("network.egress.allow[%d].jobs", n))
				to := slices.Index(names, name)
				switch {
				case name == names[i]:
					d.r.Error(at, "Job reaches itself", "What a sandbox sends to its own ports does not leave it: use localhost, and remove the name.")
				case to < 0:
					others := slices.Delete(slices.Clone(names), i, i+1)
					d.r.Error(at, "Unknown job", fmt.Sprintf("There is no job %s in this file.%s", hclread.Quote(name), hclread.SuggestOr(name, others)))
				case jobs[to].Network.Backend != j.Network.Backend:
					d.r.Error(at, "Jobs on different networks", fmt.Sprintf("Job %s has network %s, this one %s (%s): name the same plugin in both.",
						hclread.Quote(name), hclread.Quote(jobs[to].Network.Backend), hclread.Quote(j.Network.Backend), j.Where("network")))
				case slices.ContainsFunc(j.Network.Egress.Allow, func(o EgressRule) bool { return slices.Contains(o.Names, name) }):
					d.r.Error(at, "Name of two things", fmt.Sprintf("%s is among names, too, where it is a name of the internet: remove it there, or give the job another name.", hclread.Quote(name)))
				case !jobs[to].Init:
					rule := &j.Network.Egress.Allow[n]
					rule.WithoutInit = append(rule.WithoutInit, name)
				}
			}
		}
	}
}
