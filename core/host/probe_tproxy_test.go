package host

import (
	"errors"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// What netuserspace's kernel path takes beside tproxy is tried as well: a set that a rule
// fills as packets pass. The kernel lets nobody remove one that a rule uses.
func TestTProxyIsTriedWithItsMemory(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	over := make(chan struct{})
	go func() {
		defer close(over)
		runtime.LockOSThread() // for ever: the thread ends with its namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		if _, err := probeTProxy(""); err != nil {
			t.Error(err)
			return
		}
		remove := append(attr(unix.NFTA_SET_TABLE, []byte("probe\x00")), attr(unix.NFTA_SET_NAME, []byte("answers\x00"))...)
		begin := message(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, 1, nfgen(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES))
		del := message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELSET, unix.NLM_F_REQUEST|unix.NLM_F_ACK, 2, append(nfgen(unix.NFPROTO_IPV4, 0), remove...))
		end := message(unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, 3, nfgen(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES))
		if err := transact(unix.NETLINK_NETFILTER, append(append(begin, del...), end...)); !errors.Is(err, unix.EBUSY) {
			t.Errorf("removing the set: %v, want EBUSY", err)
		}
	}()
	<-over
}
