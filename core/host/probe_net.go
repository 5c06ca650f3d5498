package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/netlink"
)

// addsLink makes a link of a kind in the child's own network namespace.
func addsLink(kind string) (string, error) {
	name := []byte("probe0\x00")
	info := attr(unix.IFLA_LINKINFO|unix.NLA_F_NESTED, attr(unix.IFLA_INFO_KIND, []byte(kind)))
	body := make([]byte, unix.SizeofIfInfomsg)
	body = append(body, attr(unix.IFLA_IFNAME, name)...)
	body = append(body, info...)
	msg := message(unix.RTM_NEWLINK, unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, 1, body)
	if err := transact(unix.NETLINK_ROUTE, msg); err != nil {
		return "", fmt.Errorf("adding a %s link: %w", kind, err)
	}
	return "", nil
}

// hooked is a chain at a hook, in a table of its own.
type hooked struct {
	family         uint8
	kind           string
	hook, priority uint32
	set            []byte // attributes of a set of the table; nil for none
}

// add makes it with these rules, in one transaction.
func (c hooked) add(rules ...[]byte) error {
	var batch []byte
	next := uint32(1)
	add := func(kind uint16, attrs ...[]byte) {
		body := nfgen(c.family, 0)
		for _, a := range attrs {
			body = append(body, a...)
		}
		next++
		batch = append(batch, message(unix.NFNL_SUBSYS_NFTABLES<<8|kind, unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE, next, body)...)
	}
	batch = append(batch, message(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, 1, nfgen(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES))...)
	chain := fmt.Appendf(nil, "%s-%d\x00", c.kind, c.hook)
	add(unix.NFT_MSG_NEWTABLE, attr(unix.NFTA_TABLE_NAME, probeTable))
	at := append(attr(unix.NFTA_HOOK_HOOKNUM, be32(c.hook)), attr(unix.NFTA_HOOK_PRIORITY, be32(c.priority))...)
	add(unix.NFT_MSG_NEWCHAIN,
		attr(unix.NFTA_CHAIN_TABLE, probeTable), attr(unix.NFTA_CHAIN_NAME, chain),
		attr(unix.NFTA_CHAIN_HOOK|unix.NLA_F_NESTED, at), attr(unix.NFTA_CHAIN_TYPE, []byte(c.kind+"\x00")))
	if c.set != nil {
		add(unix.NFT_MSG_NEWSET, attr(unix.NFTA_SET_TABLE, probeTable), c.set)
	}
	for _, r := range rules {
		add(unix.NFT_MSG_NEWRULE, attr(unix.NFTA_RULE_TABLE, probeTable), attr(unix.NFTA_RULE_CHAIN, chain), attr(unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, r))
	}
	batch = append(batch, message(unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, next+1, nfgen(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES))...)
	return transact(unix.NETLINK_NETFILTER, batch)
}

var probeTable = []byte("probe\x00")

func nftExpr(name string, attrs ...[]byte) []byte {
	var data []byte
	for _, a := range attrs {
		data = append(data, a...)
	}
	return attr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, append(attr(unix.NFTA_EXPR_NAME, []byte(name+"\x00")), attr(unix.NFTA_EXPR_DATA|unix.NLA_F_NESTED, data)...))
}

// Priorities of chains (linux/netfilter_ipv4.h), as the kernel takes them.
const (
	prioDNAT   = 0xffffff9c // -100
	prioMangle = 0xffffff6a // -150
)

// probeNft adds a table and a nat chain, in one transaction.
func probeNft(string) (string, error) {
	if err := (hooked{family: unix.NFPROTO_INET, kind: "nat", hook: unix.NF_INET_LOCAL_OUT, priority: prioDNAT}).add(); err != nil {
		return "", fmt.Errorf("adding an nftables nat chain: %w", err)
	}
	return "table and nat chain", nil
}

// probeTProxy does what brings flows to a socket whose address they do not have.
func probeTProxy(string) (string, error) {
	const family, port = 1, 3 // NFTA_TPROXY_FAMILY, NFTA_TPROXY_REG_PORT
	rule := append(
		nftExpr("immediate", attr(unix.NFTA_IMMEDIATE_DREG, be32(unix.NFT_REG_1)),
			attr(unix.NFTA_IMMEDIATE_DATA|unix.NLA_F_NESTED, attr(unix.NFTA_DATA_VALUE, []byte{4, 0}))),
		nftExpr("tproxy", attr(family, be32(unix.NFPROTO_IPV4)), attr(port, be32(unix.NFT_REG_1)))...)
	if err := (hooked{family: unix.NFPROTO_IPV4, kind: "filter", hook: unix.NF_INET_PRE_ROUTING, priority: prioMangle}).add(rule); err != nil {
		return "", fmt.Errorf("adding an nftables tproxy rule: %w", err)
	}
	if err := remembers(); err != nil {
		return "", err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("making a TCP socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1); err != nil {
		return "", fmt.Errorf("IP_TRANSPARENT: %w", err)
	}
	return "tproxy rule, set filled by packets, transparent socket", nil
}

var answersSet = []byte("answers\x00")

// remembers adds a set that packets on their way out fill with where they go, for a while.
func remembers() error {
	id, while := be32(1), be64(100) // milliseconds
	set := slices.Concat(
		attr(unix.NFTA_SET_NAME, answersSet), attr(unix.NFTA_SET_ID, id),
		attr(unix.NFTA_SET_FLAGS, be32(unix.NFT_SET_TIMEOUT|unix.NFT_SET_EVAL)), attr(unix.NFTA_SET_TIMEOUT, while),
		attr(unix.NFTA_SET_KEY_TYPE, be32(0)), attr(unix.NFTA_SET_KEY_LEN, be32(8)),
		attr(unix.NFTA_SET_DESC|unix.NLA_F_NESTED, attr(unix.NFTA_SET_DESC_SIZE, be32(1024))))
	header := func(base, offset, size, register uint32) []byte {
		return nftExpr("payload", attr(unix.NFTA_PAYLOAD_DREG, be32(register)), attr(unix.NFTA_PAYLOAD_BASE, be32(base)),
			attr(unix.NFTA_PAYLOAD_OFFSET, be32(offset)), attr(unix.NFTA_PAYLOAD_LEN, be32(size)))
	}
	rule := slices.Concat(
		header(unix.NFT_PAYLOAD_NETWORK_HEADER, 16, 4, unix.NFT_REG32_00),    // address of IPv4
		header(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, unix.NFT_REG32_00+1), // port
		nftExpr("dynset", attr(unix.NFTA_DYNSET_SET_NAME, answersSet), attr(unix.NFTA_DYNSET_SET_ID, id), attr(unix.NFTA_DYNSET_OP, be32(unix.NFT_DYNSET_OP_UPDATE)),
			attr(unix.NFTA_DYNSET_SREG_KEY, be32(unix.NFT_REG32_00)), attr(unix.NFTA_DYNSET_TIMEOUT, while)))
	c := hooked{family: unix.NFPROTO_IPV4, kind: "route", hook: unix.NF_INET_LOCAL_OUT, priority: prioMangle, set: set}
	err := c.add(rule)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return &refusal{"this kernel's nftables has no sets that packets fill (dynset)", "boot a distribution's kernel"}
	}
	if err != nil {
		return fmt.Errorf("adding an nftables set that packets fill: %w", err)
	}
	return nil
}

func probeTun(string) (string, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("opening /dev/net/tun: %w", err)
	}
	defer unix.Close(fd)
	// In a sandbox of root's ids are others than here.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", setup("looking at /dev/net/tun", err)
	}
	if st.Mode&0o006 != 0o006 {
		return "", fmt.Errorf("/dev/net/tun has mode %#o, which shuts the ids of a sandbox out: %w", st.Mode&0o777, unix.EACCES)
	}
	ifr, err := unix.NewIfreq("probe0")
	if err != nil {
		return "", setup("naming the interface", err)
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return "", fmt.Errorf("making a tap interface: %w", err)
	}
	return "", nil
}

// transact sends messages. What the kernel refuses is its own errno.
func transact(protocol int, batch []byte) error {
	err := netlink.Transact(protocol, batch)
	var r *netlink.Refused
	if errors.As(err, &r) {
		return r.Errno
	}
	return err
}

func message(kind, flags uint16, seq uint32, body []byte) []byte {
	m := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+align4(len(body)))
	binary.NativeEndian.PutUint32(m, uint32(unix.SizeofNlMsghdr+len(body)))
	binary.NativeEndian.PutUint16(m[4:], kind)
	binary.NativeEndian.PutUint16(m[6:], flags)
	binary.NativeEndian.PutUint32(m[8:], seq)
	m = append(m, body...)
	return append(m, make([]byte, align4(len(m))-len(m))...)
}

func attr(kind uint16, value []byte) []byte {
	a := make([]byte, 4, 4+align4(len(value)))
	binary.NativeEndian.PutUint16(a, uint16(4+len(value)))
	binary.NativeEndian.PutUint16(a[2:], kind)
	a = append(a, value...)
	return append(a, make([]byte, align4(len(a))-len(a))...)
}

func nfgen(family uint8, res uint16) []byte {
	return []byte{family, 0, byte(res >> 8), byte(res)} // resource id is big-endian
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func align4(n int) int { return (n + 3) &^ 3 }
