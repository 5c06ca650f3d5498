package seccomp

import _ "embed"

var (
	//go:embed filters/default_amd64.bpf
	defaultBPF string
	//go:embed filters/init_amd64.bpf
	initBPF string
	//go:embed filters/setid_amd64.bpf
	setidBPF string
	//go:embed filters/local_amd64.bpf
	localBPF string
	//go:embed filters/tcp_amd64.bpf
	tcpBPF string
	//go:embed filters/runtime_amd64.bpf
	runtimeBPF string
	//go:embed filters/trace_amd64.bpf
	traceBPF string
	//go:embed filters/traceinit_amd64.bpf
	traceInitBPF string
)
