// Package pluginhost finds, verifies, launches, confines and supervises plugins.
// It is the only room that speaks go-plugin and gRPC; the rest of the core sees
// the interfaces of sdk/secrets and sdk/hooks.
//
// A plugin is another party's program. What is executed is the descriptor whose
// content was hashed; the process gets a clean environment, no terminal, no
// privilege that its operator did not write down, a control group of its own and, by
// what it is started for, a box, and ends with its host: it holds one end of a pipe
// whose other end is ours. The two talk over a Unix socket in a
// directory of ours, and each checks with the kernel who the other is.
package pluginhost
