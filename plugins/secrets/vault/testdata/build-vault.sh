#!/bin/sh
# Builds a Vault server for the tests, from the Go module proxy alone.
#
# go install refuses Vault, whose go.mod replaces its own sub-modules by
# directories that a module's archive lacks. So they are taken from the proxy, too;
# none there is exactly what Vault 1.14.8 was released with: of api, 1.10.0 will do;
# sdk 0.9.2 lacks two things, which are added below, and 0.10.2's package physical.
# Nothing of this is linked into Nucleus.
set -eu

[ $# = 1 ] || { echo "usage: $0 FILE" >&2; exit 2; }
out=$(realpath "$1")
work=$(mktemp -d)
trap 'chmod -R u+w "$work" && rm -rf "$work"' EXIT
cd "$work"

export CGO_ENABLED=0 GOWORK=off GOFLAGS="-mod=mod -buildvcs=false"
printf 'module download\n' >go.mod
dir() { go mod download -json "github.com/hashicorp/vault$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'; }
vault=$(dir @v1.14.8)
cp -r "$(dir /sdk@v0.9.2)" sdk
chmod -R u+w sdk
rm sdk/physical/*.go
cp "$(dir /sdk@v0.10.2)"/physical/*.go sdk/physical/

# It checks a coding error of back ends, which one of this Vault's own has.
sed -i 's/if p.ExistenceCheck == nil {/if false \&\& p.ExistenceCheck == nil {/' sdk/framework/backend.go

cat >sdk/logical/original_body.go <<'EOF'
package logical

import (
	"context"
	"io"
)

type ctxKeyOriginalBody struct{}

func ContextOriginalBodyValue(ctx context.Context) (io.ReadCloser, bool) {
	value, ok := ctx.Value(ctxKeyOriginalBody{}).(io.ReadCloser)
	return value, ok
}

func CreateContextOriginalBody(parent context.Context, body io.ReadCloser) context.Context {
	return context.WithValue(parent, ctxKeyOriginalBody{}, body)
}

type CtxKeyRequestRole struct{}

func (c CtxKeyRequestRole) String() string { return "request-role" }
EOF

cat >main.go <<'EOF'
package main

import (
	"os"

	"github.com/hashicorp/vault/command"
)

func main() { os.Exit(command.Run(os.Args[1:])) }
EOF

sed -e 's/^module .*/module vaultfortests/' -e 's#\(hashicorp/vault/api\) v1.9.2#\1 v1.10.0#' -e '/^replace .*=> \./d' "$vault/go.mod" >go.mod
cat >>go.mod <<'EOF'

require github.com/hashicorp/vault v1.14.8

replace github.com/hashicorp/vault/sdk => ./sdk
EOF
cp "$vault/go.sum" .
go build -ldflags "-s -w" -o "$out" .
