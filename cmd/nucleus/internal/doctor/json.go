package doctor

import (
	"encoding/json"
	"io"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

// Version of the JSON document; docs/host.md describes it. It grows when a
// field changes its meaning or goes, not when one is added.
const Version = 1

type document struct {
	Version  int       `json:"version"`
	Host     hostJSON  `json:"host"`
	Features []feature `json:"features"`
	Networks []network `json:"networks"`
	Runtimes []runtime `json:"runtimes"`
	Modes    []mode    `json:"modes"`
	Exit     int       `json:"exit"`
}

// hostJSON is the host without its features, which have a list of their own,
// and with a state that is spelled out.
type hostJSON struct {
	fact.Host
	Cgroup   cgroup    `json:"cgroup"`
	Features *struct{} `json:"features,omitempty"`
}

type cgroup struct {
	Layout string `json:"layout"`
	Why    string `json:"why,omitempty"`
	Remedy string `json:"remedy,omitempty"`
}

type feature struct {
	Name   string `json:"name"`
	State  string `json:"state"`
	Detail string `json:"detail,omitempty"`
	Why    string `json:"why,omitempty"`
	Since  string `json:"since,omitempty"`
	Remedy string `json:"remedy,omitempty"`
}

type mode struct {
	Mode     string   `json:"mode"`
	CouldRun string   `json:"could_run"`
	Missing  []string `json:"missing"`
	Unsure   []string `json:"unsure"`
	Degraded []string `json:"degraded"`
}

type network struct {
	Plugin    string   `json:"plugin"`
	Path      string   `json:"path,omitempty"`
	CouldWork string   `json:"could_work"`
	Missing   []string `json:"missing"`
	Unsure    []string `json:"unsure"`
}

type runtime struct {
	Plugin    string   `json:"plugin"`
	Program   string   `json:"program,omitempty"`
	CouldWork string   `json:"could_work"`
	Missing   []string `json:"missing"`
	Unsure    []string `json:"unsure"`
	Why       string   `json:"why,omitempty"`
	Remedy    string   `json:"remedy,omitempty"`
}

func writeJSON(w io.Writer, r Report) error {
	c := r.Host.Cgroup
	doc := document{
		Version: Version,
		Host:    hostJSON{Host: r.Host, Cgroup: cgroup{c.Layout, c.Why, c.Remedy}},
		Exit:    r.exit(),
	}
	for _, f := range r.Features {
		doc.Features = append(doc.Features, feature{f.Name, spelled(f.State), f.Detail, f.Why, f.Since, f.Remedy})
	}
	for _, m := range r.Modes {
		doc.Modes = append(doc.Modes, mode{m.Mode, yesNo(m.State), list(m.Missing), list(m.Unsure), list(m.Degraded)})
	}
	for _, n := range r.Networks {
		doc.Networks = append(doc.Networks, network{n.Plugin, n.Path, yesNo(n.State), list(n.Missing), list(n.Unsure)})
	}
	for _, v := range r.Runtimes {
		doc.Runtimes = append(doc.Runtimes, runtime{v.Plugin, v.Program, yesNo(v.State), list(v.Missing), list(v.Unsure), v.Why, v.Remedy})
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(doc)
}

func spelled(s fact.State) string {
	if s == fact.Unknown {
		return "unknown"
	}
	return string(s)
}

// list makes "none" an empty list, so that readers need no case for null.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
