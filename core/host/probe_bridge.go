package host

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// expression is one that a network's rules have beside the basics. Each is a module of
// its own in most distributions, which the kernel loads when a rule has it.
type expression struct {
	what   string // as nft(8) writes it
	module string
	config string
	kind   string // of the chain
	hook   uint32
	rule   []byte
}

// connlimitCount is NFTA_CONNLIMIT_COUNT of linux/netfilter/nf_tables.h.
const connlimitCount = 1

// forwarding are those of netbridge's rules, whatever a job asks for.
func forwarding() []expression {
	reg := be32(unix.NFT_REG_1)
	return []expression{
		{
			"ct label", "nft_ct", "CONFIG_NF_CONNTRACK_LABELS", "filter", unix.NF_INET_FORWARD,
			nftExpr("ct", attr(unix.NFTA_CT_DREG, reg), attr(unix.NFTA_CT_KEY, be32(unix.NFT_CT_LABELS))),
		},
		{
			"ct count", "nft_connlimit", "CONFIG_NFT_CONNLIMIT", "filter", unix.NF_INET_FORWARD,
			nftExpr("connlimit", attr(connlimitCount, be32(1))),
		},
		{
			"fib", "nft_fib_inet", "CONFIG_NFT_FIB_INET", "filter", unix.NF_INET_PRE_ROUTING,
			nftExpr("fib", attr(unix.NFTA_FIB_DREG, reg), attr(unix.NFTA_FIB_RESULT, be32(unix.NFT_FIB_RESULT_ADDRTYPE)), attr(unix.NFTA_FIB_FLAGS, be32(unix.NFTA_FIB_F_DADDR))),
		},
		{
			"limit", "nft_limit", "CONFIG_NFT_LIMIT", "filter", unix.NF_INET_FORWARD,
			nftExpr("limit", attr(unix.NFTA_LIMIT_RATE, be64(50)), attr(unix.NFTA_LIMIT_UNIT, be64(1))),
		},
		{
			"log group", "nft_log", "CONFIG_NFT_LOG", "filter", unix.NF_INET_FORWARD,
			nftExpr("log", attr(unix.NFTA_LOG_GROUP, []byte{0, 1})),
		},
		{"masquerade", "nft_masq", "CONFIG_NFT_MASQ", "nat", unix.NF_INET_POST_ROUTING, nftExpr("masq")},
		{
			"reject", "nft_reject_inet", "CONFIG_NFT_REJECT_INET", "filter", unix.NF_INET_FORWARD,
			nftExpr("reject", attr(unix.NFTA_REJECT_TYPE, be32(unix.NFT_REJECT_ICMPX_UNREACH)), attr(unix.NFTA_REJECT_ICMP_CODE, []byte{unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED})),
		},
	}
}

// try adds a rule with the expression.
func (e expression) try() error {
	err := hooked{family: unix.NFPROTO_INET, kind: e.kind, hook: e.hook}.add(e.rule)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return lacks(fmt.Sprintf("nftables' %q", e.what), e.module, e.config)
	}
	if err != nil {
		return fmt.Errorf("adding an nftables rule with %q: %w", e.what, err)
	}
	return nil
}

// lacks is what a kernel says that has no module for something, and can load none.
func lacks(what, module, config string) error {
	return &refusal{
		fmt.Sprintf("this kernel has no %s, which the module %s brings", what, module),
		fmt.Sprintf("sudo modprobe %s, or boot a kernel with %s", module, config),
	}
}

// probeForwarding adds rules with all that netbridge's have.
func probeForwarding(string) (string, error) {
	detail := ""
	for _, e := range forwarding() {
		if err := e.try(); err != nil {
			return "", err
		}
		if detail != "" {
			detail += ", "
		}
		detail += e.what
	}
	return detail, nil
}

// probeNumgen adds a rule that chooses among the addresses of a name.
func probeNumgen(string) (string, error) {
	return "", expression{
		"numgen", "nft_numgen", "CONFIG_NFT_NUMGEN", "filter", unix.NF_INET_PRE_ROUTING,
		nftExpr("numgen", attr(unix.NFTA_NG_DREG, be32(unix.NFT_REG_1)), attr(unix.NFTA_NG_MODULUS, be32(256)), attr(unix.NFTA_NG_TYPE, be32(unix.NFT_NG_RANDOM))),
	}.try()
}

// probeConntrack has the kernel forget a connection that there is not.
func probeConntrack(string) (string, error) {
	const (
		forget                 = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2 // IPCTNL_MSG_CT_DELETE
		original, ip, protocol = 1, 1, 2                           // CTA_TUPLE_ORIG, CTA_TUPLE_IP, CTA_TUPLE_PROTO
		src, dst               = 1, 2                              // CTA_IP_V4_SRC, CTA_IP_V4_DST
		number, sport, dport   = 1, 2, 3                           // CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT
	)
	addresses := append(attr(src, []byte{192, 0, 2, 1}), attr(dst, []byte{192, 0, 2, 2})...) // TEST-NET-1 (RFC 5737)
	flow := append(attr(number, []byte{unix.IPPROTO_TCP}), append(attr(sport, []byte{0, 1}), attr(dport, []byte{0, 1})...)...)
	tuple := append(attr(ip|unix.NLA_F_NESTED, addresses), attr(protocol|unix.NLA_F_NESTED, flow)...)
	body := append(nfgen(unix.AF_INET, 0), attr(original|unix.NLA_F_NESTED, tuple)...)
	err := transact(unix.NETLINK_NETFILTER, message(forget, unix.NLM_F_REQUEST|unix.NLM_F_ACK, 1, body))
	switch {
	case err == nil || errors.Is(err, unix.ENOENT): // it has looked
		return "", nil
	case errors.Is(err, unix.EINVAL): // what nfnetlink says of a part that it does not have
		return "", lacks("way to change the connections that it follows", "nf_conntrack_netlink", "CONFIG_NF_CT_NETLINK")
	}
	return "", fmt.Errorf("having a connection forgotten: %w", err)
}

func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
