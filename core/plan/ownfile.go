package plan

import "fmt"

// OwnFileHint is what to do about a job that may write its own file.
const OwnFileHint = "keep the job file elsewhere, or give the directory read-only"

// ownFile refuses, or has the plan tell of, a job that decides what its next run does.
func (m *maker) ownFile() {
	m.p.OwnFile = m.in.OwnFile
	for _, origin := range m.in.OwnFile {
		if m.j.Mode.Strict() {
			m.fail(origin, OwnFileHint, "mode %s does not allow a job that may write its own file, and %q is in there", m.j.Mode, m.j.File)
		}
	}
}

// OwnFileWarnings are those of Warnings that nobody has told who has read the job.
func (p *Plan) OwnFileWarnings() []string {
	var out []string
	for _, origin := range p.OwnFile {
		out = append(out, fmt.Sprintf("%s: the job may write its own file: %q is in there, so the sandbox can change what the next run does", p.Where(origin), p.File))
	}
	return out
}
