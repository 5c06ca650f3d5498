module github.com/nucleus-runtime/nucleus/plugins/network

go 1.26.0

require (
	github.com/google/nftables v0.3.0
	github.com/miekg/dns v1.1.73
	github.com/nucleus-runtime/nucleus/sdk v0.0.0
	github.com/vishvananda/netlink v1.3.1
	golang.org/x/sys v0.49.0
)

replace github.com/nucleus-runtime/nucleus/sdk => ../../sdk
