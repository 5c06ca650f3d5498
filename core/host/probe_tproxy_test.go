package host

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// What netuserspace's kernel path takes beside tproxy is tried as well: a set that a rule
// fills as packets pass. The kernel lets nobody remove one that a rule uses.
func TestTProxyIsTriedWithItsMemory(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	inNetNS(t, func() {
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
	})
}
