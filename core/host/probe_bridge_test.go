package host

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// What a kernel has no module for is surely missing, and the module is named; with those
// that it has rules can be made.
func TestExpressionsOfTheKernel(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	inNetNS(t, func() {
		for _, e := range forwarding() {
			if err := e.try(); err != nil {
				t.Errorf("%s: %v", e.what, err)
			}
		}
		err := expression{"nonsense", "nft_nonsense", "CONFIG_NFT_NONSENSE", "filter", unix.NF_INET_FORWARD, nftExpr("nonsense")}.try()
		var r *refusal
		if !errors.As(err, &r) || !strings.Contains(r.why, `no nftables' "nonsense"`) || !strings.HasPrefix(r.remedy, "sudo modprobe nft_nonsense, ") {
			t.Errorf("%v, %+v", err, r)
		}
	})
}

// inNetNS does something in a network namespace of its own, which may call t.Error.
func inNetNS(t *testing.T, do func()) {
	t.Helper()
	over := make(chan struct{})
	go func() {
		defer close(over)
		runtime.LockOSThread() // for ever: the thread ends with its namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		do()
	}()
	<-over
}
