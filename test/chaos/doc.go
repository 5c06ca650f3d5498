// Package chaos owns the tests that break Nucleus from outside: supervisors,
// inits and workloads killed at every instant, full disks, damaged journals,
// many sandboxes at once. After each, nothing may be left. Nothing that runs
// sandboxes of its own may run beside them.
package chaos
