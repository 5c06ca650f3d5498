// Package e2e has the tests of the networks through the real binary, in a laboratory of
// namespaces: nucleus runs on its host, and what a job's policy refuses must not be seen
// on its uplink. Both backends are held to the same table of verdicts.
package e2e
