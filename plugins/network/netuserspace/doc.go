// Package netuserspace is the network that needs no privilege on the host. Every flow
// of a sandbox ends at this process, which asks the policy, connects on the host's side
// as any program would, and joins the two. No link leads out of the sandbox's network
// namespace, so that without the process there are no flows: they cannot be open
// because it has died.
//
// The sandbox's own kernel brings TCP and UDP to sockets that init has opened there,
// and no byte of TCP goes through a network stack in user space; what is set up for that
// is in package inside. A program's connect is answered when the far side has
// accepted, refused or not answered, as without anything in between.
//
// A process serves one sandbox, for as long as that lives (manifest: resident).
package netuserspace
