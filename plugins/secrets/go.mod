module github.com/nucleus-runtime/nucleus/plugins/secrets

go 1.26.0

require (
	filippo.io/age v1.3.1
	github.com/nucleus-runtime/nucleus/sdk v0.0.0
	golang.org/x/crypto v0.45.0
	golang.org/x/sys v0.49.0
)

require (
	filippo.io/edwards25519 v1.1.0 // indirect
	filippo.io/hpke v0.4.0 // indirect
)

replace github.com/nucleus-runtime/nucleus/sdk => ../../sdk
