// Package seccomp owns the system call policy of a sandbox: the default policy as data, the model of OCI seccomp
// profiles, the filters compiled from them at build time, and the client and cache of the compiler for all others.
// It never loads a filter into a process and never links libseccomp.
//
// A [Request] (default policy or OCI profile, extra calls, kept capabilities) resolves to a [Policy]: numbered rules
// for one architecture, pure data. A [Compiler] turns it into a [Filter]. What resolves to the default policy is
// answered with the embedded filter, which needs neither libseccomp nor a helper; everything else is compiled once by
// the helper nucleus-seccomp, checked against the policy by interpretation, and kept in a cache.
package seccomp

//go:generate go run ./internal/gen/filters
