package network

import (
	"maps"
	"strconv"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
)

// metaPort is the key of an error's metadata that says which of the ports it is about.
const metaPort = "publish"

// AtPort says of an error of Prepare or Attach which of the request's Ports it is
// about: the user is shown the line of that publish block.
func AtPort(i int, err error) error {
	if err == nil {
		return nil
	}
	e := errs.Of(err)
	meta := maps.Clone(e.Metadata)
	if meta == nil {
		meta = make(map[string]string)
	}
	meta[metaPort] = strconv.Itoa(i)
	reason := e.Reason
	if reason == "" {
		reason = "PORT_NOT_PUBLISHED"
	}
	return errs.Because(err, reason, meta)
}

// PortOf tells which of the request's Ports an error is about; -1 is none.
func PortOf(err error) int {
	if err == nil {
		return -1
	}
	i, bad := strconv.ParseUint(errs.Of(err).Metadata[metaPort], 10, 16)
	if bad != nil {
		return -1
	}
	return int(i)
}
