package pluginhost

import (
	"os"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/core/job/hostconfig"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
)

// A process that is not what it is to be is told from one that is, by each of its parts.
func TestPostureOfAProcess(t *testing.T) {
	r := newRig(t, nil)
	p, err := r.Host.Start(t.Context(), "chatty", manifest.Network)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	good := p.proc.launch
	if err := good.verify(p.Pid()); err != nil {
		t.Fatalf("as it is: %v", err)
	}
	for what, change := range map[string]func(*launch){
		"its uid is":     func(l *launch) { l.uid, l.switchU = l.uid+1, true },
		"its gid is":     func(l *launch) { l.gid, l.switchU = l.gid+1, true },
		"its uid_map is": func(l *launch) { l.uid, l.apart = l.uid+1, true },
		"its gid_map is": func(l *launch) { l.gid, l.apart = l.gid+1, true },
		"":               func(l *launch) { l.uid, l.caps = l.uid+1, []string{"CAP_SETUID"} },
	} {
		l := good
		change(&l)
		if err := l.verify(p.Pid()); (err == nil) != (what == "") || err != nil && !strings.Contains(err.Error(), what) {
			t.Errorf("%q: error %v", what, err)
		}
	}
	// This process was started by nobody here.
	bare := launch{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), box: boxOf(manifest.Secrets, hostconfig.Plugin{}), apart: true}
	err = bare.verify(os.Getpid())
	for _, what := range []string{"its no_new_privs is 0, want 1", "its user namespace is ours", "CapBnd is", "its uid_map is"} {
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("no %q in %v", what, err)
		}
	}
}
