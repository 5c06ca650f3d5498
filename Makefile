# Nucleus: build, test, install. `make help` lists the targets.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

MODULE  := github.com/nucleus-runtime/nucleus
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
GOBUILD := go build -trimpath -ldflags '$(LDFLAGS)'

PREFIX     ?= /usr/local
BINDIR     ?= $(PREFIX)/bin
LIBEXECDIR ?= $(PREFIX)/libexec/nucleus
DOCDIR     ?= $(PREFIX)/share/doc/nucleus

# cgo only where libseccomp is linked; everything else is a static executable.
CGO_COMMANDS := nucleus-seccomp
COMMANDS     := $(notdir $(patsubst %/,%,$(dir $(wildcard cmd/*/main.go))))
# Modules of their own: a plugin sees the SDK and nothing else of ours.
MODULES      := sdk plugins/secrets plugins/network plugins/gvisor examples/plugins
# What a secrets provider needs, all jobs that use it wait for. So there are several
# programs; the names of the one that is several providers are in a file of its own.
LOCAL        := $(file <plugins/secrets/cmd/local/names)

TESTFLAGS ?= -count=1
FUZZTIME  ?= 20000x
KERNEL    ?= 6.12
VMFLAGS   ?=

# Tests run the binaries that make built, and record what they skip (see docs/testing.md).
export NUCLEUS_BIN      = $(CURDIR)/bin
export NUCLEUS_SKIP_LOG = $(CURDIR)/bin/skipped-tests

GOLANGCI_VERSION := v2.15.0
GOLANGCI         := bin/tools/golangci-lint-$(GOLANGCI_VERSION)
RUNSC_VERSION    := v0.0.0-20260905035102-160fafc42237
RUNSC            := bin/tools/runsc-$(RUNSC_VERSION)

## deps: install what building and running need (says what, silent when nothing is missing)
.PHONY: deps
deps:
	@scripts/check-go
	@scripts/deps build

## deps-test: install what the tests and benchmarks need besides
.PHONY: deps-test
deps-test: deps $(RUNSC)
	@scripts/deps test

## build: the binaries, into bin/
.PHONY: build
build:
	@scripts/check-go
	@mkdir -p bin
	@for c in $(COMMANDS); do \
		cgo=0; for x in $(CGO_COMMANDS); do [ $$c != $$x ] || cgo=1; done; \
		CGO_ENABLED=$$cgo $(GOBUILD) -o bin/ ./cmd/$$c; \
	done
	@CGO_ENABLED=0 $(GOBUILD) -tags plugins,grpcnotrace -o bin/nucleus-full ./cmd/nucleus
	@mkdir -p bin/plugins
	@CGO_ENABLED=0 go -C plugins/secrets build -trimpath -ldflags '$(LDFLAGS)' -tags grpcnotrace -o $(CURDIR)/bin/plugins/ ./cmd/...
	@CGO_ENABLED=0 go -C plugins/network build -trimpath -ldflags '$(LDFLAGS)' -tags grpcnotrace -o $(CURDIR)/bin/plugins/ ./cmd/...
	@CGO_ENABLED=0 go -C plugins/gvisor build -trimpath -ldflags '$(LDFLAGS)' -tags grpcnotrace -o $(CURDIR)/bin/plugins/ ./cmd/...
	@mkdir -p bin/examples
	@CGO_ENABLED=0 go -C examples/plugins build -trimpath -ldflags '$(LDFLAGS)' -tags grpcnotrace -o $(CURDIR)/bin/examples/ ./...
	@cd bin/plugins; for n in $(LOCAL); do ln -f local nucleus-plugin-$$n; done; rm local

## run: build and run the smallest example
.PHONY: run
run: deps build
	@bin/nucleus run -config examples/hello/job.hcl

## test: everything but the VM: unit, script, rootless, software, network, attack, chaos
.PHONY: test
test: deps-test build
	@rm -f $(NUCLEUS_SKIP_LOG)
	@status=0; \
	$(MAKE) --no-print-directory --keep-going test-unit test-script test-gvisor test-rootless test-software test-network test-attack test-chaos || status=$$?; \
	scripts/skip-summary $(NUCLEUS_SKIP_LOG); \
	exit $$status

# Packages below DIR that exist; a folder with no tests yet is said, not hidden.
define go-test
	@pkgs=$$(go list ./... | { grep -E '^$(MODULE)/$(1)(/|$$)' || :; }); \
	if [ -n "$$pkgs" ]; then go test $(TESTFLAGS) $(2) $$pkgs; else echo "no packages below $(1)"; fi
endef

# Modules two at a time: the plugins' tests wait more than they compute. What one prints comes whole, at its end.
two-at-a-time = $(MAKE) --no-print-directory --keep-going -j2 --output-sync=target

## test-unit: tests beside the code
.PHONY: test-unit
test-unit: build $(RUNSC)
	@$(two-at-a-time) $(addprefix unit/,core $(MODULES))

.PHONY: unit/core $(addprefix unit/,$(MODULES))
unit/core:
	@go test $(TESTFLAGS) $$(go list ./... | grep -vE '^$(MODULE)/test/')
$(addprefix unit/,$(MODULES)): unit/%:
	@go -C $* test $(TESTFLAGS) $$(go -C $* list ./... | grep -v '/network/e2e$$')

## test-script: behaviour through the real binary
.PHONY: test-script
test-script: build $(RUNSC)
	$(call go-test,test/script,-timeout 20m)

## test-gvisor: the same behaviour with gVisor in the native runtime's place, but for test/script/gvisor-exceptions.txt
.PHONY: test-gvisor
test-gvisor: build $(RUNSC)
	NUCLEUS_TEST_RUNTIME=gvisor go test $(TESTFLAGS) -timeout 20m ./test/script

## test-software: real programs in the default sandbox, and the examples
.PHONY: test-software
test-software: build
	$(call go-test,test/software)

## test-network: sandboxes with networks, in network namespaces of the tests' own
.PHONY: test-network
test-network: build
	@go -C plugins/network test $(TESTFLAGS) -timeout 20m ./e2e

## test-attack: escapes and abuses, each with its teeth check
.PHONY: test-attack
test-attack: build
	$(call go-test,test/attack)

## test-chaos: kill at every journal record, then count what is left; nothing else may run beside it
.PHONY: test-chaos
test-chaos: build
	$(call go-test,test/chaos,-p 1 -timeout 20m)

## test-rootless: as root: the core's unit tests once more, as an ordinary user
.PHONY: test-rootless
test-rootless: build
	@if [ "$$(id -u)" != 0 ]; then echo "test-rootless: the other targets already ran as an ordinary user"; \
	else scripts/test-as-user $$(go list ./... | { grep -E '^$(MODULE)/(core|cmd|internal/testutil)(/|$$)' || :; }); fi

## test-vm: what needs pure cgroup v2, delegation or another kernel (KERNEL=6.12|6.1|..., VMFLAGS=-u for a user)
.PHONY: test-vm
test-vm: build
	@test/vm/run -k $(KERNEL) $(VMFLAGS)

## race: the race detector (init's raw fork runs no Go code, so it is left out)
.PHONY: race
# What conformance tests start is built without the detector: they would take minutes to find nothing. Those of the
# network plugins as a whole take as long with it as everything else together: `go test -race -short` by hand.
race:
	@$(two-at-a-time) $(addprefix race/,core $(MODULES))

.PHONY: race/core $(addprefix race/,$(MODULES))
race/core:
	@CGO_ENABLED=1 go test -race $(TESTFLAGS) $$(go list ./... | grep -vE '^$(MODULE)/(test|bench|cmd/nucleus-init)(/|$$)')
$(addprefix race/,$(MODULES)): race/%:
	@CGO_ENABLED=1 go -C $* test -race $(TESTFLAGS) -skip 'Conforms$$' $$(go -C $* list ./... | grep -vE '/sdk/conformance|/network/(e2e|netbridge|netuserspace)$$')

## fuzz: each fuzz test for FUZZTIME (a number of executions: a time races the fuzzer's own end, golang/go#75804)
.PHONY: fuzz
fuzz:
	@scripts/fuzz $(FUZZTIME)

## lint: golangci-lint with the project's policy, go vet, shell syntax
.PHONY: lint
lint: $(GOLANGCI)
	@$(GOLANGCI) run ./... && $(GOLANGCI) run --build-tags plugins ./cmd/nucleus
	@for m in $(MODULES); do (cd $$m && $(CURDIR)/$(GOLANGCI) run -c $(CURDIR)/.golangci.yml ./...); done
	@go vet ./... && go vet -tags plugins ./cmd/nucleus
	@for m in $(MODULES); do go -C $$m vet ./...; done
	@go mod verify >/dev/null
	@for f in $$(git ls-files scripts test/vm .ci bench | xargs -r grep -lE '^#!.*sh$$'); do bash -n "$$f"; done

# Built once: `go run` would relink it at every call. Its own module graph stays out of go.mod.
$(GOLANGCI):
	@mkdir -p bin/tools
	GOBIN=$(CURDIR)/bin/tools go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	@mv bin/tools/golangci-lint $@

# gVisor, as its own releases have it but for their build system. nucleus-plugin-gvisor of a checkout finds it here.
$(RUNSC):
	@mkdir -p bin/tools/build
	GOBIN=$(CURDIR)/bin/tools/build CGO_ENABLED=0 go install -trimpath -ldflags '-s -w' gvisor.dev/gvisor/runsc@$(RUNSC_VERSION)
	@mv bin/tools/build/runsc $@ && rmdir bin/tools/build && ln -sfn $(notdir $@) bin/tools/runsc

## generate: everything that is generated and committed; a second run changes nothing
.PHONY: generate
generate:
	@scripts/generate

## bench: benchmarks against the peers, into bench/results/
.PHONY: bench
bench: deps-test build
	@bench/run $(BENCHFLAGS)

## bench-net: networks against the peers, into bench/results/net.md (as root)
.PHONY: bench-net
bench-net: deps-test build
	@bench/net/run $(BENCHFLAGS)

## bench-gvisor: what gVisor costs beside the native runtime, into bench/results/gvisor.md
.PHONY: bench-gvisor
bench-gvisor: deps-test build
	@bench/gvisor/run

# Written in one piece a program is kept in the page cache in large folios, until that
# lets it go; to map and unmap fewer of them is worth 4 % of a start (Linux 6.18, ext4).
program = install -m 0755 /dev/null $(2) && dd if=$(1) of=$(2) bs=64M status=none

## install: into PREFIX (/usr/local), below DESTDIR
.PHONY: install
install: build
	install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(LIBEXECDIR) $(DESTDIR)$(DOCDIR)
	$(call program,bin/nucleus,$(DESTDIR)$(BINDIR)/nucleus)
	for c in $(filter-out nucleus,$(COMMANDS)) nucleus-full; do $(call program,bin/$$c,$(DESTDIR)$(LIBEXECDIR)/$$c) || exit 1; done
	install -d $(DESTDIR)$(LIBEXECDIR)/plugins
	cp -df --preserve=links bin/plugins/nucleus-plugin-* $(DESTDIR)$(LIBEXECDIR)/plugins/
	chmod 0755 $(DESTDIR)$(LIBEXECDIR)/plugins/*
	install -m 0644 LICENSE $(wildcard *.md) $(DESTDIR)$(DOCDIR)
	for f in $(wildcard docs/*.md docs/adr/*.md) $$(find examples -type f ! -path '*/rootfs/*'); do \
		mode=0644; [ ! -x $$f ] || mode=0755; install -D -m $$mode $$f $(DESTDIR)$(DOCDIR)/$$f; \
	done

## uninstall: remove what install put there
.PHONY: uninstall
uninstall:
	rm -f $(DESTDIR)$(BINDIR)/nucleus
	rm -rf $(DESTDIR)$(LIBEXECDIR) $(DESTDIR)$(DOCDIR)

## clean: remove bin/ (tools included)
.PHONY: clean
clean:
	rm -rf bin

## help: this list
.PHONY: help
help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST) | while IFS= read -r l; do printf '  %-15s%s\n' "$${l%%: *}" "$${l#*: }"; done
