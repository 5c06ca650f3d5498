// Package chaos owns the tests that break Nucleus from outside: supervisors,
// clients, inits and workloads killed at every instant, full disks, damaged
// journals, many sandboxes at once and many in a row. After each, nothing may be
// left. Nothing that runs sandboxes of its own may run beside them. What can be
// asked of them is in docs/testing.md.
package chaos
