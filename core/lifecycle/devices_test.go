package lifecycle

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nucleus-runtime/nucleus/core/plan"
)

func TestADeviceThatItsUserMayNotOpenIsTold(t *testing.T) {
	device := filepath.Join(t.TempDir(), "kvm")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	me, mine, another := uint32(os.Geteuid()), os.Getegid(), uint32(os.Geteuid()+165536)
	for _, x := range []struct {
		mode   os.FileMode
		uid    uint32
		groups []int
		may    bool
	}{
		{0o600, me, nil, true},
		{0o666, another, nil, true},
		{0o660, another, []int{mine}, true},
		{0o660, another, []int{mine + 165536}, false},
		{0o600, another, []int{mine}, false},
		{0o640, another, []int{mine}, false},
		{0o606, another, []int{mine}, false}, // the group's rights count for who is in it
		{0o066, me, []int{mine}, false},
	} {
		if err := os.Chmod(device, x.mode); err != nil {
			t.Fatal(err)
		}
		err := mayOpen(device, x.uid, x.groups)
		if (err == nil) != x.may || err != nil && !strings.Contains(err.Error(), "may not read and write it (mode "+strconv.FormatUint(0o10000|uint64(x.mode), 8)[1:]) {
			t.Errorf("%+v: %v", x, err)
		}
	}
	if err := mayOpen(device+"s", me, nil); !errors.Is(err, unix.ENOENT) {
		t.Errorf("error %v", err)
	}
	// Whom a list lets in, the mode does not tell.
	if err := os.Chmod(device, 0o600); err != nil {
		t.Fatal(err)
	}
	if setfacl, err := exec.LookPath("setfacl"); err == nil {
		if out, err := exec.CommandContext(t.Context(), setfacl, "-m", "u:"+strconv.Itoa(int(another))+":rw", device).CombinedOutput(); err == nil {
			if err := mayOpen(device, another, nil); err != nil {
				t.Errorf("with an access control list: %v", err)
			}
		} else {
			t.Logf("no access control lists here: %s", out)
		}
	}
	p := &plan.Plan{Runtime: &plan.Runtime{Plugin: "box"}}
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: another, Size: 1}}
	p.IDs.UIDs, p.IDs.GIDs = ids, ids
	device += "-plain"
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var pe *PhaseError
	if err := mayOpenDevices(p, true, []string{device}); err == nil || (!errors.As(err, &pe) || pe.Origin != "runtime" || !strings.Contains(pe.Hint, "setfacl -m u:"+strconv.Itoa(int(another))+":rw "+device)) {
		t.Errorf("error %#v", err)
	}
}
