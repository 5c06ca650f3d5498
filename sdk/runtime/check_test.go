package runtime

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func goodSpec() []byte {
	return []byte(`{"ociVersion":"1.2.0","process":{"args":["/bin/true"],"cwd":"/","user":{"uid":0,"gid":0}},"root":{"path":"/rootfs"}}`)
}

func goodPrepared() *Prepared {
	return &Prepared{
		Program:     Program{Path: "/bin/true", SHA256: strings.Repeat("0a", 32), Libraries: true, Devices: []string{"/dev/kvm"}},
		Spec:        goodSpec(),
		Run:         Command{Args: []string{"box", "run", "--pid=" + WordPIDFile, "--log=" + WordFailureFile, "{}", `{"json": {"a":1}}`, "", WordID}, Env: []string{"A=", "B={id}"}},
		Exec:        Command{Args: []string{"box", "exec", "--pid=" + WordPIDFile, "-" + WordID}},
		Signal:      Command{Args: []string{"box", "kill", WordID, WordPID, WordSignal}},
		SignalGroup: Command{Args: []string{"box", "kill", "-g", WordID, WordPID, WordSignal}},
		Facts:       map[string]string{"version": "1.2 (ünïcode)"},
	}
}

// Whatever a plugin says is taken only as it is meant to be.
func TestPreparedIsChecked(t *testing.T) {
	if err := goodPrepared().Check(); err != nil {
		t.Fatal(err)
	}
	spec := func(change func(map[string]any)) func(*Prepared) {
		return func(p *Prepared) {
			var m map[string]any
			if err := json.Unmarshal(p.Spec, &m); err != nil {
				t.Fatal(err)
			}
			change(m)
			p.Spec, _ = json.Marshal(m)
		}
	}
	many := func(n int) []string { return strings.Split(strings.Repeat("a ", n-1)+"a", " ") }
	for name, x := range map[string]struct {
		change func(*Prepared)
		want   string
	}{
		"nothing":                {func(p *Prepared) { *p = Prepared{} }, `program: "" is no absolute, clean path`},
		"a relative path":        {func(p *Prepared) { p.Program.Path = "bin/true" }, "program: \"bin/true\" is no absolute"},
		"a path that climbs":     {func(p *Prepared) { p.Program.Path = "/usr/../tmp/x" }, "is no absolute, clean path"},
		"a long path":            {func(p *Prepared) { p.Program.Path = "/" + strings.Repeat("a", 4096) }, "too long, or not printable"},
		"a NUL in a path":        {func(p *Prepared) { p.Program.Path = "/bin/true\x00" }, "too long, or not printable"},
		"a path that draws":      {func(p *Prepared) { p.Program.Path = "/bin/" + "\x1b]0;owned\a" }, "too long, or not printable"},
		"half a digest":          {func(p *Prepared) { p.Program.SHA256 = "0a0a" }, "64 hexadecimal digits"},
		"no digest":              {func(p *Prepared) { p.Program.SHA256 = strings.Repeat("zz", 32) }, "64 hexadecimal digits"},
		"a disk":                 {func(p *Prepared) { p.Program.Devices = []string{"/dev/sda"} }, `device "/dev/sda": a runtime may have, once: /dev/kvm`},
		"a way to a disk":        {func(p *Prepared) { p.Program.Devices = []string{"/dev/kvm/../sda"} }, "a runtime may have"},
		"a device twice":         {func(p *Prepared) { p.Program.Devices = []string{"/dev/kvm", "/dev/kvm"} }, "once"},
		"a large spec":           {func(p *Prepared) { p.Spec = append(p.Spec, bytes.Repeat([]byte(" "), MaxSpec)...) }, "and may have 1048576"},
		"no JSON":                {func(p *Prepared) { p.Spec = []byte("{") }, "spec: unexpected end of JSON"},
		"two specs":              {func(p *Prepared) { p.Spec = append(p.Spec, p.Spec...) }, "spec: invalid character"},
		"JSON of something else": {func(p *Prepared) { p.Spec = []byte(`[1]`) }, "spec: json: cannot unmarshal"},
		"no spec":                {func(p *Prepared) { p.Spec = []byte(`{}`) }, "it has no ociVersion"},
		"no process":             {spec(func(m map[string]any) { delete(m, "process") }), "it has no process"},
		"a process of nothing":   {spec(func(m map[string]any) { m["process"] = map[string]any{"cwd": "/"} }), "it has no process"},
		"no root":                {spec(func(m map[string]any) { delete(m, "root") }), "its root is not /rootfs"},
		"another root":           {spec(func(m map[string]any) { m["root"] = map[string]any{"path": "/"} }), "its root is not /rootfs"},
		"hooks":                  {spec(func(m map[string]any) { m["hooks"] = map[string]any{} }), "it has hooks"},
		"no run":                 {func(p *Prepared) { p.Run.Args = nil }, "run: it has no arguments"},
		"no name":                {func(p *Prepared) { p.Run.Args[0] = "" }, "run: its first argument"},
		"a NUL":                  {func(p *Prepared) { p.Run.Args[1] = "a\x00b" }, "run: there is a NUL in it"},
		"a NUL in a variable":    {func(p *Prepared) { p.Exec.Env = []string{"A=\x00"} }, "exec: there is a NUL in it"},
		"too many arguments":     {func(p *Prepared) { p.Run.Args = many(MaxWords + 1) }, "run: it has 257 arguments"},
		"too many variables":     {func(p *Prepared) { p.Signal.Env = many(MaxWords + 1) }, "and 257 variables"},
		"too long an argument":   {func(p *Prepared) { p.Run.Args[1] = strings.Repeat("a", MaxText) }, "of 65536 bytes"},
		"no variable":            {func(p *Prepared) { p.Run.Env = []string{"A"} }, `run: variable "A" is none`},
		"one without a name":     {func(p *Prepared) { p.Run.Env = []string{"=x"} }, "is none"},
		"a variable twice":       {func(p *Prepared) { p.Run.Env = []string{"A=1", "A=2"} }, `variable "A=2" is none, or there twice`},
		"an unknown word":        {func(p *Prepared) { p.Run.Args[1] = "{bundle}" }, "run: argument \"{bundle}\": {bundle} is not replaced here"},
		"a word in a word":       {func(p *Prepared) { p.Run.Args[1] = "{{id}{x}}" }, "{x} is not replaced here"},
		"a process of run's":     {func(p *Prepared) { p.Run.Args[1] = WordPID }, "run: argument"},
		"a signal of run's":      {func(p *Prepared) { p.Run.Args[1] = WordSignal }, "run: argument"},
		"a number of exec's":     {func(p *Prepared) { p.Exec.Args[1] = WordPID }, "exec: argument"},
		"a file of signal's":     {func(p *Prepared) { p.Signal.Args[1] = WordPIDFile }, "signal: argument"},
		"one signal for all":     {func(p *Prepared) { p.Signal.Args[4] = "9" }, "signal: without {signal}"},
		"one process for all":    {func(p *Prepared) { p.Signal.Args[3] = "1" }, "signal: without {pid}"},
		"exec that tells none":   {func(p *Prepared) { p.Exec.Args[2] = "x" }, "exec: without {pid-file}"},
		"one group for all":      {func(p *Prepared) { p.SignalGroup.Args[4] = "1" }, "signal group: without {pid}"},
		"one signal for groups":  {func(p *Prepared) { p.SignalGroup.Args[5] = "9" }, "signal group: without {signal}"},
		"a file of a group's":    {func(p *Prepared) { p.SignalGroup.Args[3] = WordPIDFile }, "signal group: argument"},
		"a group of none":        {func(p *Prepared) { p.Exec, p.Signal.Args[3] = Command{}, "all" }, "signal group: without exec and signal"},
		"a group and no signal":  {func(p *Prepared) { p.Signal = Command{} }, "signal group: without exec and signal"},
		"a failure of exec's":    {func(p *Prepared) { p.Exec.Args[1] = WordFailureFile }, "exec: argument"},
		"too many facts": {func(p *Prepared) {
			for i := range MaxFacts {
				p.Facts[fmt.Sprint(i)] = "x"
			}
		}, "33 facts"},
		"a fact without a name":    {func(p *Prepared) { p.Facts[""] = "x" }, "fact \"\""},
		"a long fact":              {func(p *Prepared) { p.Facts["a"] = strings.Repeat("x", MaxFact+1) }, "too long"},
		"a fact that draws":        {func(p *Prepared) { p.Facts["a"] = "\x1b]0;owned\a" }, "not printable"},
		"a fact of a broken name":  {func(p *Prepared) { p.Facts["\x1b[2J"] = "" }, "not printable"},
		"a fact of another script": {func(p *Prepared) { p.Facts["a"] = "\u202eevil" }, "not printable"},
	} {
		p := goodPrepared()
		x.change(p)
		if err := p.Check(); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v, want %q", name, err, x.want)
		}
	}
	// What may be left out.
	for name, change := range map[string]func(*Prepared){
		"groups":    func(p *Prepared) { p.SignalGroup = Command{} },
		"signal":    func(p *Prepared) { p.SignalGroup, p.Signal, p.Exec.Args = Command{}, Command{}, []string{"x"} },
		"processes": func(p *Prepared) { p.SignalGroup, p.Exec, p.Signal.Args[3] = Command{}, Command{}, "all" },
		"the rest":  func(p *Prepared) { p.Program.SHA256, p.Program.Devices, p.Facts, p.Run.Env = "", nil, nil, nil },
	} {
		p := goodPrepared()
		change(p)
		if err := p.Check(); err != nil {
			t.Errorf("without %s: %v", name, err)
		}
	}
}
