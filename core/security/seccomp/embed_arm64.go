package seccomp

import _ "embed"

var (
	//go:embed filters/default_arm64.bpf
	defaultBPF string
	//go:embed filters/init_arm64.bpf
	initBPF string
	//go:embed filters/setid_arm64.bpf
	setidBPF string
	//go:embed filters/local_arm64.bpf
	localBPF string
	//go:embed filters/tcp_arm64.bpf
	tcpBPF string
	//go:embed filters/runtime_arm64.bpf
	runtimeBPF string
	//go:embed filters/trace_arm64.bpf
	traceBPF string
	//go:embed filters/traceinit_arm64.bpf
	traceInitBPF string
)
