package wire

import (
	"github.com/nucleus-runtime/nucleus/sdk/network"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

func portMap(p network.PortMap) *pluginv1.PortMap {
	return &pluginv1.PortMap{HostIp: addr(p.HostIP), HostPort: uint32(p.HostPort), ContainerPort: uint32(p.ContainerPort), Protocol: p.Protocol}
}

func (r *reader) portMap(in *pluginv1.PortMap) network.PortMap {
	return network.PortMap{
		HostIP: r.addr(in.GetHostIp()), HostPort: r.port(in.GetHostPort()), ContainerPort: r.port(in.GetContainerPort()), Protocol: in.GetProtocol(),
	}
}

func dns(d *network.DNS) *pluginv1.DNS {
	if d == nil {
		return nil
	}
	return &pluginv1.DNS{Servers: all(d.Servers, addr), Search: d.Search, Options: d.Options}
}

func (r *reader) dns(in *pluginv1.DNS) *network.DNS {
	if in == nil {
		return nil
	}
	return &network.DNS{Servers: all(in.GetServers(), r.addr), Search: in.GetSearch(), Options: in.GetOptions()}
}

var verdicts = both[network.Verdict, pluginv1.Egress_Verdict]{
	network.Deny:   pluginv1.Egress_VERDICT_DENY,
	network.Public: pluginv1.Egress_VERDICT_PUBLIC,
	network.Allow:  pluginv1.Egress_VERDICT_ALLOW,
}

func egress(e network.Egress) *pluginv1.Egress {
	return &pluginv1.Egress{DefaultVerdict: verdicts[e.Default], Allow: all(e.Allow, func(r network.Rule) *pluginv1.EgressRule {
		return &pluginv1.EgressRule{
			Names: r.Names, Cidrs: all(r.CIDRs, prefix), Protocols: r.Protocols, Jobs: r.Jobs,
			Ports: all(r.Ports, func(p network.Ports) *pluginv1.EgressPorts {
				return &pluginv1.EgressPorts{Protocol: p.Protocol, First: uint32(p.First), Last: uint32(p.Last)}
			}),
		}
	})}
}

func (r *reader) egress(in *pluginv1.Egress) network.Egress {
	return network.Egress{Default: verdicts.from(in.GetDefaultVerdict()), Allow: all(in.GetAllow(), func(p *pluginv1.EgressRule) network.Rule {
		return network.Rule{
			Names: p.GetNames(), CIDRs: all(p.GetCidrs(), r.prefix), Protocols: p.GetProtocols(), Jobs: p.GetJobs(),
			Ports: all(p.GetPorts(), func(p *pluginv1.EgressPorts) network.Ports {
				return network.Ports{Protocol: p.GetProtocol(), First: r.port(p.GetFirst()), Last: r.port(p.GetLast())}
			}),
		}
	})}
}

var openings = both[network.OpeningKind, pluginv1.Opening_Kind]{
	0:                       pluginv1.Opening_KIND_UNSPECIFIED,
	network.Tap:             pluginv1.Opening_KIND_TAP,
	network.RouteSocket:     pluginv1.Opening_KIND_ROUTE,
	network.NetfilterSocket: pluginv1.Opening_KIND_NETFILTER,
	network.ListenTCP:       pluginv1.Opening_KIND_LISTEN_TCP,
	network.ListenUDP:       pluginv1.Opening_KIND_LISTEN_UDP,
	network.TCPSocket:       pluginv1.Opening_KIND_TCP,
	network.UDPSocket:       pluginv1.Opening_KIND_UDP,
	network.NetNS:           pluginv1.Opening_KIND_NETNS,
	network.RawSocket:       pluginv1.Opening_KIND_RAW,
}

// NetworkPrepare as it travels.
func NetworkPrepare(r *network.PrepareRequest) *pluginv1.NetworkPrepareRequest {
	return &pluginv1.NetworkPrepareRequest{Call: Call(r.Call), Ports: all(r.Ports, portMap), Dns: dns(r.DNS), Egress: egress(r.Egress), OwnStack: r.OwnStack}
}

// FromNetworkPrepare is the inverse of NetworkPrepare.
func FromNetworkPrepare(in *pluginv1.NetworkPrepareRequest) (*network.PrepareRequest, error) {
	var r reader
	out := &network.PrepareRequest{
		Call: FromCall(in.GetCall()), Ports: all(in.GetPorts(), r.portMap), DNS: r.dns(in.GetDns()), Egress: r.egress(in.GetEgress()),
		OwnStack: in.GetOwnStack(),
	}
	return out, r.err()
}

// NetworkPrepared as it travels.
func NetworkPrepared(p *network.PrepareResponse) *pluginv1.NetworkPrepareResponse {
	return &pluginv1.NetworkPrepareResponse{Handle: Handle(p.Handle), Openings: all(p.Openings, func(o network.Opening) *pluginv1.Opening {
		return &pluginv1.Opening{
			Name: o.Name, Kind: openings[o.Kind], Address: addrPort(o.Address), Ifname: o.IfName, Count: o.Count,
			Optional: o.Optional, Transparent: o.Transparent, Index: o.Index,
		}
	}), Setups: all(p.Setups, func(s network.Setup) *pluginv1.Setup {
		return &pluginv1.Setup{Name: s.Name, Protocol: uint32(s.Protocol), Messages: s.Messages, Optional: s.Optional, After: s.After}
	})}
}

// FromNetworkPrepared is the inverse of NetworkPrepared.
func FromNetworkPrepared(in *pluginv1.NetworkPrepareResponse) (*network.PrepareResponse, error) {
	var r reader
	out := &network.PrepareResponse{Handle: FromHandle(in.GetHandle()), Openings: all(in.GetOpenings(), func(o *pluginv1.Opening) network.Opening {
		return network.Opening{
			Name: o.GetName(), Kind: openings.from(o.GetKind()), Address: r.addrPort(o.GetAddress()), IfName: o.GetIfname(), Count: o.GetCount(),
			Optional: o.GetOptional(), Transparent: o.GetTransparent(), Index: o.GetIndex(),
		}
	}), Setups: all(in.GetSetups(), func(s *pluginv1.Setup) network.Setup {
		return network.Setup{Name: s.GetName(), Protocol: r.port(s.GetProtocol()), Messages: s.GetMessages(), Optional: s.GetOptional(), After: s.GetAfter()}
	})}
	return out, r.err()
}

func userNS(u *network.UserNS) *pluginv1.UserNS {
	if u == nil {
		return nil
	}
	return &pluginv1.UserNS{Namespace: namespace(u.Namespace), Uids: all(u.UIDs, idMap), Gids: all(u.GIDs, idMap)}
}

func member(m *network.Member) *pluginv1.Member {
	if m == nil {
		return nil
	}
	return &pluginv1.Member{Stack: m.Stack, Job: m.Job}
}

// Attach as it travels, without the files.
func Attach(r *network.AttachRequest) *pluginv1.AttachRequest {
	return &pluginv1.AttachRequest{
		Call: Call(r.Call), Netns: namespace(r.NetNS), Ifname: r.IfName, Ports: all(r.Ports, portMap), Dns: dns(r.DNS), Hostname: r.Hostname,
		MacHint: r.MACHint, IpHints: all(r.IPHints, addr), Prepared: Handle(r.Prepared), Userns: userNS(r.UserNS), Mtu: r.MTU,
		Egress: egress(r.Egress), Descriptors: fileNames(r.Files), Missing: r.Missing, Member: member(r.Member), OwnStack: r.OwnStack,
	}
}

// FromAttach is the inverse of Attach.
func FromAttach(in *pluginv1.AttachRequest) (*network.AttachRequest, error) {
	var r reader
	out := &network.AttachRequest{
		Call: FromCall(in.GetCall()), NetNS: fromNamespace(in.GetNetns()), IfName: in.GetIfname(), Ports: all(in.GetPorts(), r.portMap),
		DNS: r.dns(in.GetDns()), Hostname: in.GetHostname(), MACHint: in.GetMacHint(), IPHints: all(in.GetIpHints(), r.addr),
		Prepared: FromHandle(in.GetPrepared()), MTU: in.GetMtu(), Egress: r.egress(in.GetEgress()), Missing: in.GetMissing(), OwnStack: in.GetOwnStack(),
	}
	if m := in.GetMember(); m != nil {
		out.Member = &network.Member{Stack: m.GetStack(), Job: m.GetJob()}
	}
	if u := in.GetUserns(); u != nil {
		out.UserNS = &network.UserNS{Namespace: fromNamespace(u.GetNamespace()), UIDs: all(u.GetUids(), fromIDMap), GIDs: all(u.GetGids(), fromIDMap)}
	}
	return out, r.err()
}

// Attached as it travels.
func Attached(a *network.AttachResponse) *pluginv1.AttachResponse {
	return &pluginv1.AttachResponse{
		Handle: Handle(a.Handle), Dns: dns(a.DNS), Ports: all(a.Ports, portMap),
		Interfaces: all(a.Interfaces, func(i network.Interface) *pluginv1.Interface {
			return &pluginv1.Interface{Name: i.Name, Mac: i.MAC, Mtu: i.MTU, HostName: i.HostName}
		}),
		Ips: all(a.IPs, func(c network.IPConfig) *pluginv1.IPConfig {
			return &pluginv1.IPConfig{Address: prefix(c.Address), Gateway: addr(c.Gateway), Ifname: c.IfName}
		}),
		Routes: all(a.Routes, func(r network.Route) *pluginv1.Route {
			return &pluginv1.Route{Dst: prefix(r.Dst), Via: addr(r.Via), Ifname: r.IfName, Metric: r.Metric}
		}),
	}
}

// FromAttached is the inverse of Attached.
func FromAttached(in *pluginv1.AttachResponse) (*network.AttachResponse, error) {
	var r reader
	out := &network.AttachResponse{
		Handle: FromHandle(in.GetHandle()), DNS: r.dns(in.GetDns()), Ports: all(in.GetPorts(), r.portMap),
		Interfaces: all(in.GetInterfaces(), func(i *pluginv1.Interface) network.Interface {
			return network.Interface{Name: i.GetName(), MAC: i.GetMac(), MTU: i.GetMtu(), HostName: i.GetHostName()}
		}),
		IPs: all(in.GetIps(), func(c *pluginv1.IPConfig) network.IPConfig {
			return network.IPConfig{Address: r.prefix(c.GetAddress()), Gateway: r.addr(c.GetGateway()), IfName: c.GetIfname()}
		}),
		Routes: all(in.GetRoutes(), func(p *pluginv1.Route) network.Route {
			return network.Route{Dst: r.prefix(p.GetDst()), Via: r.addr(p.GetVia()), IfName: p.GetIfname(), Metric: p.GetMetric()}
		}),
	}
	return out, r.err()
}

func optionalNS(n *network.Namespace) *pluginv1.Namespace {
	if n == nil {
		return nil
	}
	return namespace(*n)
}

func fromOptionalNS(in *pluginv1.Namespace) *network.Namespace {
	if in == nil {
		return nil
	}
	n := fromNamespace(in)
	return &n
}

// Detach as it travels.
func Detach(r *network.DetachRequest) *pluginv1.DetachRequest {
	return &pluginv1.DetachRequest{
		Call: Call(r.Call), Handle: Handle(r.Handle), Prepared: Handle(r.Prepared), Netns: optionalNS(r.NetNS), Ifname: r.IfName, Force: r.Force,
	}
}

// FromDetach is the inverse of Detach.
func FromDetach(in *pluginv1.DetachRequest) *network.DetachRequest {
	return &network.DetachRequest{
		Call: FromCall(in.GetCall()), Handle: FromHandle(in.GetHandle()), Prepared: FromHandle(in.GetPrepared()),
		NetNS: fromOptionalNS(in.GetNetns()), IfName: in.GetIfname(), Force: in.GetForce(),
	}
}

// Detached as it travels.
func Detached(removed []string) *pluginv1.DetachResponse {
	return &pluginv1.DetachResponse{Removed: all(removed, valid)}
}

// NetworkStatus as it travels.
func NetworkStatus(r *network.StatusRequest) *pluginv1.NetworkStatusRequest {
	return &pluginv1.NetworkStatusRequest{
		SandboxId: r.SandboxID, InstanceId: r.InstanceID, Handle: Handle(r.Handle), Netns: optionalNS(r.NetNS), Ifname: r.IfName,
	}
}

// FromNetworkStatus is the inverse of NetworkStatus.
func FromNetworkStatus(in *pluginv1.NetworkStatusRequest) *network.StatusRequest {
	return &network.StatusRequest{
		SandboxID: in.GetSandboxId(), InstanceID: in.GetInstanceId(), Handle: FromHandle(in.GetHandle()), NetNS: fromOptionalNS(in.GetNetns()),
		IfName: in.GetIfname(),
	}
}

// NetworkState as it travels.
func NetworkState(s *network.Status) *pluginv1.NetworkStatusResponse {
	return &pluginv1.NetworkStatusResponse{Ok: s.OK, Denied: s.Denied, Drift: all(s.Drift, valid), Flows: all(s.Flows, func(f network.FlowStats) *pluginv1.FlowStats {
		return &pluginv1.FlowStats{Name: valid(f.Name), Connections: f.Connections, RxBytes: f.RxBytes, TxBytes: f.TxBytes}
	}), Stats: all(s.Stats, func(i network.IfStats) *pluginv1.IfStats {
		return &pluginv1.IfStats{
			Ifname: i.IfName, RxBytes: i.RxBytes, TxBytes: i.TxBytes, RxPackets: i.RxPackets, TxPackets: i.TxPackets, Dropped: i.Dropped,
		}
	})}
}

// FromNetworkState is the inverse of NetworkState.
func FromNetworkState(in *pluginv1.NetworkStatusResponse) *network.Status {
	return &network.Status{OK: in.GetOk(), Denied: in.GetDenied(), Drift: in.GetDrift(), Flows: all(in.GetFlows(), func(f *pluginv1.FlowStats) network.FlowStats {
		return network.FlowStats{Name: f.GetName(), Connections: f.GetConnections(), RxBytes: f.GetRxBytes(), TxBytes: f.GetTxBytes()}
	}), Stats: all(in.GetStats(), func(i *pluginv1.IfStats) network.IfStats {
		return network.IfStats{
			IfName: i.GetIfname(), RxBytes: i.GetRxBytes(), TxBytes: i.GetTxBytes(), RxPackets: i.GetRxPackets(), TxPackets: i.GetTxPackets(),
			Dropped: i.GetDropped(),
		}
	})}
}

// NetworkWatch as it travels.
func NetworkWatch(r *network.WatchRequest) *pluginv1.NetworkWatchRequest {
	return &pluginv1.NetworkWatchRequest{SandboxId: r.SandboxID, InstanceId: r.InstanceID, Handle: Handle(r.Handle)}
}

// FromNetworkWatch is the inverse of NetworkWatch.
func FromNetworkWatch(in *pluginv1.NetworkWatchRequest) *network.WatchRequest {
	return &network.WatchRequest{SandboxID: in.GetSandboxId(), InstanceID: in.GetInstanceId(), Handle: FromHandle(in.GetHandle())}
}

// NetworkDenial as it travels.
func NetworkDenial(d network.Denial) *pluginv1.NetworkWatchResponse {
	return &pluginv1.NetworkWatchResponse{
		At: timestamp(d.At), Protocol: valid(d.Protocol), Address: addrPort(d.Dst), Name: valid(d.Name), Rule: int32(d.Rule), Reason: valid(string(d.Reason)), Count: d.Count,
	}
}

// FromNetworkDenial is the inverse of NetworkDenial.
func FromNetworkDenial(in *pluginv1.NetworkWatchResponse) (network.Denial, error) {
	var r reader
	out := network.Denial{
		At: fromTimestamp(in.GetAt()), Protocol: in.GetProtocol(), Dst: r.addrPort(in.GetAddress()), Name: in.GetName(), Rule: int(in.GetRule()),
		Reason: network.Reason(in.GetReason()), Count: in.GetCount(),
	}
	return out, r.err()
}

// GC as it travels.
func GC(r *network.GCRequest) *pluginv1.GCRequest {
	return &pluginv1.GCRequest{Call: Call(r.Call), DryRun: r.DryRun, Valid: all(r.Valid, func(a network.Attachment) *pluginv1.Attachment {
		return &pluginv1.Attachment{SandboxId: a.SandboxID, InstanceId: a.InstanceID, Ifname: a.IfName, Handle: Handle(a.Handle)}
	})}
}

// FromGC is the inverse of GC.
func FromGC(in *pluginv1.GCRequest) *network.GCRequest {
	return &network.GCRequest{Call: FromCall(in.GetCall()), DryRun: in.GetDryRun(), Valid: all(in.GetValid(), func(a *pluginv1.Attachment) network.Attachment {
		return network.Attachment{SandboxID: a.GetSandboxId(), InstanceID: a.GetInstanceId(), IfName: a.GetIfname(), Handle: FromHandle(a.GetHandle())}
	})}
}

// Collected as it travels.
func Collected(g *network.GCResponse) *pluginv1.GCResponse {
	return &pluginv1.GCResponse{Removed: all(g.Removed, valid), Failed: all(g.Failed, valid)}
}

// FromCollected is the inverse of Collected.
func FromCollected(in *pluginv1.GCResponse) *network.GCResponse {
	return &network.GCResponse{Removed: in.GetRemoved(), Failed: in.GetFailed()}
}
