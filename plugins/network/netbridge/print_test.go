package netbridge

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// Whoever looks at the host's rules with nft sees ours among them, whatever a policy has.
func TestNFTPrintsTheTables(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.DNS.Set("a.example", "93.184.216.10", "2606:2800:220::10")
	p, web, db := start(t, lab), newBox(t, "web"), newBox(t, "db")
	p.attach(web, network.AttachRequest{
		Member: &network.Member{Stack: "shop", Job: "web"}, DNS: &network.DNS{Servers: []netip.Addr{netip.MustParseAddr("93.184.216.53")}},
		Ports: []network.PortMap{
			{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 8081, ContainerPort: 80, Protocol: "tcp"},
			{HostIP: netip.MustParseAddr("::"), HostPort: 8082, ContainerPort: 80, Protocol: "udp"},
		},
		Egress: network.Egress{Default: network.Public, Allow: []network.Rule{
			{Names: []string{"a.example"}, Ports: tcpPorts(443, 444)},
			{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("fd00::/8")}, Protocols: []string{"icmp"}},
			{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}, Ports: []network.Ports{{Protocol: "udp", First: 100, Last: 200}}},
			{Jobs: []string{"db"}, Ports: tcpPorts(5432, 5433)},
		}},
	})
	p.member(db, "shop", "db", "")
	if r := web.job("a.example", "A"); len(r.Addresses) != 1 {
		t.Fatalf("%+v", r)
	}
	out, err := lab.Host.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "table inet "+tableName) || !strings.Contains(string(out), "table bridge "+tableName) {
		t.Errorf("nft list ruleset: %v\n%s", err, out)
	}
}
