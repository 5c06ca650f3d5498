package netbridge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
)

// lockTable is a table that exists while a process changes what all sandboxes share.
const lockTable = "nucleus_lock"

const nftTableOwner = 2 // NFT_TABLE_F_OWNER, Linux 5.12

// locker makes this the one process in the host's network namespace that makes and
// removes what sandboxes share. The lock is a table of nftables that belongs to a
// socket: making it is exclusive, takes CAP_NET_ADMIN, so that no user can hold it,
// and the kernel removes it with the socket, however the process ends. A lock file
// would be one for each state root.
type locker struct {
	mu sync.Mutex
	// s stays open: when a socket is closed that had tables, the kernel waits for all
	// readers of rules.
	s    socket
	open bool
}

var (
	errNoNFTables = errors.New("this kernel has no nftables: sudo modprobe nf_tables, or boot a distribution's kernel (nucleus doctor: nftables.userns)")
	errNoOwners   = errors.New("the kernel has no tables of nftables that belong to a process: Linux 5.12 is needed")
)

// cannotHave tells whether a kernel cannot have our tables, and so has none of them.
func cannotHave(err error) bool {
	return errors.Is(err, errNoNFTables) || errors.Is(err, errNoOwners)
}

func (l *locker) lock(ctx context.Context) (unlock func(), err error) {
	l.mu.Lock()
	defer func() {
		if err != nil {
			// An answer may have been lost, and the table be this socket's: nobody would
			// ever get it, this process neither.
			l.drop()
			l.mu.Unlock()
		}
	}()
	if !l.open {
		if l.s, err = open(unix.NETLINK_NETFILTER); errors.Is(err, unix.EPROTONOSUPPORT) {
			return nil, errs.Preconditionf("%w (%w)", errNoNFTables, err)
		} else if err != nil {
			return nil, err
		}
		l.open = true
	}
	for wait := 200 * time.Microsecond; ; wait = min(2*wait, 5*time.Millisecond) {
		// A change that fails costs the kernel a wait for its readers, and all others with
		// it: to look whether the table is there costs nothing.
		err := l.held(ctx)
		if errors.Is(err, unix.ENOENT) {
			if err = l.table(ctx, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE|unix.NLM_F_EXCL); err == nil {
				return l.unlock, nil
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, unix.EEXIST), errors.Is(err, unix.EPERM) && netAdmin():
		case errors.Is(err, unix.EINVAL): // nfnetlink.c (Linux): nobody has the subsystem
			return nil, errs.Preconditionf("%w (%w)", errNoNFTables, err)
		case errors.Is(err, unix.EOPNOTSUPP):
			return nil, errs.Preconditionf("%w (%w)", errNoOwners, err)
		default:
			return nil, fmt.Errorf("locking the network of sandboxes: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("another process has changed the network of sandboxes for too long: %w", context.Cause(ctx))
		case <-time.After(wait/2 + rand.N(wait)):
		}
	}
}

func (l *locker) unlock() {
	defer l.mu.Unlock()
	if err := l.table(context.Background(), unix.NFT_MSG_DELTABLE, 0); err != nil {
		l.drop() // the socket's end is the lock's
	}
}

func (l *locker) drop() {
	if l.open {
		l.s.close()
		l.open = false
	}
}

// held asks whether anybody has the lock; unix.ENOENT says that nobody has.
func (l *locker) held(ctx context.Context) error {
	return l.s.send(ctx, nil, request(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, unix.NLM_F_ACK,
		&nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_INET}, attr(unix.NFTA_TABLE_NAME, nl.ZeroTerminated(lockTable))))
}

func (l *locker) table(ctx context.Context, message, flags int) error {
	return l.s.send(ctx, nil, batchEdge(unix.NFNL_MSG_BATCH_BEGIN),
		request(unix.NFNL_SUBSYS_NFTABLES<<8|message, flags|unix.NLM_F_ACK, &nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_INET},
			attr(unix.NFTA_TABLE_NAME, nl.ZeroTerminated(lockTable)), attr(unix.NFTA_TABLE_FLAGS, nl.BEUint32Attr(nftTableOwner))),
		batchEdge(unix.NFNL_MSG_BATCH_END))
}

// batchEdge begins or ends a transaction of nftables.
func batchEdge(kind int) *nl.NetlinkRequest {
	return request(kind, 0, &nl.Nfgenmsg{ResId: nl.Swap16(unix.NFNL_SUBSYS_NFTABLES)})
}

// netAdmin tells whether this process has CAP_NET_ADMIN: the kernel says EPERM both to
// one that has not, and to one that makes a table which is another socket's.
func netAdmin() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0
}
