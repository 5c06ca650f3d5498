package inside

import "github.com/nucleus-runtime/nucleus/sdk/network"

// PortError says which port of the host could not be had.
type PortError struct {
	Port network.PortMap
	Err  error
}

func (e *PortError) Error() string { return e.Err.Error() }

func (e *PortError) Unwrap() error { return e.Err }
