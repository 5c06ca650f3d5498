// Package cgroups owns the control group of a sandbox: it finds out what the
// cgroups of this host can do for the calling process, makes one group per
// sandbox, limits it, accounts for it, and kills and removes it.
//
// The order of use is [Detect], [New], [Group.Create], [Group.Limit], then
// [Group.Attach] (or a clone into [Group.FD]); [Group.Stats] before
// [Group.Remove]. A [Record] is all that another process needs to remove the
// group, so it can be journalled before Create.
//
// The package never leaves the subtree that it was given: on cgroup v1 and
// hybrid hosts groups are made below the groups that this process runs in,
// hierarchy by hierarchy; on v2 inside the delegated subtree. docs/cgroups.md
// states the rule in full. It removes only directories whose name starts with
// [Prefix], never files, and it prints nothing.
package cgroups
