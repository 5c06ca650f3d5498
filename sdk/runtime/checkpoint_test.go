package runtime

import (
	"strings"
	"testing"
)

func saving() *Prepared {
	p := goodPrepared()
	p.Checkpoint = Checkpoint{
		Pause: Command{Args: []string{"box", "pause", WordID}}, Save: Command{Args: []string{"box", "save", "--to=" + WordImage, WordID}},
		Resume: Command{Args: []string{"box", "resume", WordID}}, Restore: Command{Args: []string{"box", "run", WordPIDFile, WordFailureFile, WordImage, WordID}},
	}
	return p
}

func TestCheckpointsAreChecked(t *testing.T) {
	if p := goodPrepared(); p.Checkpoint.Given() {
		t.Error("there are commands of none")
	}
	if p := saving(); p.Check() != nil || !p.Checkpoint.Given() {
		t.Error(p.Check())
	}
	for name, x := range map[string]struct {
		change func(*Checkpoint)
		want   string
	}{
		"no pause":           {func(c *Checkpoint) { c.Pause = Command{} }, "it has 3 of its 4 commands"},
		"save alone":         {func(c *Checkpoint) { *c = Checkpoint{Save: c.Save} }, "it has 1 of its 4 commands"},
		"no place to save":   {func(c *Checkpoint) { c.Save.Args[2] = "/image" }, "checkpoint: save: without {image}"},
		"nothing to restore": {func(c *Checkpoint) { c.Restore.Args[4] = "x" }, "checkpoint: restore: without {image}"},
		"an image to pause":  {func(c *Checkpoint) { c.Pause.Args[1] = WordImage }, "checkpoint: pause: argument"},
		"a process to save":  {func(c *Checkpoint) { c.Save.Args[1] = WordPID }, "checkpoint: save: argument"},
		"a NUL":              {func(c *Checkpoint) { c.Resume.Args[1] = "\x00" }, "checkpoint: resume: there is a NUL"},
	} {
		p := saving()
		x.change(&p.Checkpoint)
		if err := p.Check(); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v, want %q", name, err, x.want)
		}
	}
	// It is no other command's word.
	p := saving()
	p.Run.Args[1] = WordImage
	if err := p.Check(); err == nil || !strings.Contains(err.Error(), "run: argument") {
		t.Error(err)
	}
}
