// Package policy holds the project to rules that no linter sees: what the
// binaries link, how long files get, which dependencies are accounted for. It
// has tests and nothing else.
package policy
