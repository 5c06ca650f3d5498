package netbridge

import (
	"context"
	"fmt"

	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Rules about the destination that a sandbox has sent to, before it was translated. There
// are two keys for that. Of the older one, NFT_CT_DST, nobody but the kernel knows how
// long it is in a table of both families, and nft 1.0.6 (Debian 12) aborts where it is a
// part of something. The newer, one for each family (NFT_CT_DST_IP, Linux 4.17), the library
// cannot ask for. So these rules are written here, into chains of their own, after those
// that lead to them. Without them a sandbox reaches no name.

// original loads it, as a rule has it.
func (f fam) original(reg uint32) []byte {
	key := uint32(unix.NFT_CT_DST_IP)
	if f.size == 16 {
		key = unix.NFT_CT_DST_IP6
	}
	name := attr(unix.NFTA_EXPR_NAME, nl.ZeroTerminated("ct"))
	data := nested(unix.NFTA_EXPR_DATA, attr(unix.NFTA_CT_DREG, nl.BEUint32Attr(reg)), attr(unix.NFTA_CT_KEY, nl.BEUint32Attr(key)), attr(unix.NFTA_CT_DIRECTION, []byte{0}))
	return append(name.Serialize(), data.Serialize()...)
}

// written is a part of a rule as the kernel gets it, with what failed.
type written struct {
	parts [][]byte
	err   error
}

func (w *written) add(parts ...exprs) {
	for _, e := range seq(parts...) {
		b, err := expr.Marshal(unix.NFPROTO_INET, e)
		if err != nil && w.err == nil {
			w.err = err
		}
		w.parts = append(w.parts, b)
	}
}

// byOriginal adds the rules of a sandbox that has names.
func (s sandbox) byOriginal(ctx context.Context) error {
	batch := []*nl.NetlinkRequest{batchEdge(unix.NFNL_MSG_BATCH_BEGIN)}
	for _, f := range families() {
		var count, pair written
		count.add(f.only(), exprs{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: r0}})
		count.parts = append(count.parts, f.original(r0+1))
		count.add(in(s.name()+setFlows+f.suffix, r0))

		pair.add(f.only())
		pair.parts = append(pair.parts, f.original(r0))
		pair.add(header(f.dst, f.size, r0+f.words), in(s.name()+setPairs+f.suffix, r0), s.tag.pass())
		for chain, rule := range map[string]written{chainCount: count, chainPairs: pair} {
			if rule.err != nil {
				return rule.err
			}
			list := nested(unix.NFTA_RULE_EXPRESSIONS)
			for _, p := range rule.parts {
				list.AddChild(attr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, p))
			}
			batch = append(batch, request(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND|unix.NLM_F_ACK,
				&nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_INET}, attr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(tableName)),
				attr(unix.NFTA_RULE_CHAIN, nl.ZeroTerminated(s.name()+chain)), list))
		}
	}
	to, err := open(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer to.close()
	if err := to.send(ctx, nil, append(batch, batchEdge(unix.NFNL_MSG_BATCH_END))...); err != nil {
		return fmt.Errorf("adding the rules of names: %w", err)
	}
	return nil
}
