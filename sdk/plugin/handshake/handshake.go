// Package handshake is what a host and the SDK must agree on before the first
// call: names, the cookie, and how each makes sure who the other is.
package handshake

import (
	"encoding/json"
	"fmt"

	"github.com/nucleus-runtime/nucleus/sdk/plugin/internal/launch"
)

// AppProtocol is the version of the wire's framing. Services have versions of
// their own, which a manifest names.
const AppProtocol = 1

// The first two words of the line by which a plugin says where it listens, and the
// last: go-plugin's.
const (
	CoreProtocol = 1
	Transport    = "grpc"
)

// PluginName is the one name under which go-plugin serves and dispenses: a plugin
// has one connection for all of its services.
const PluginName = "nucleus"

// Environment variables that a host sets.
const (
	EnvCookie     = launch.CookieKey
	EnvLifelineFD = launch.LifelineFD // number of a descriptor; the plugin ends when it closes
	EnvPeerUID    = launch.PeerUID    // the host's user, where the plugin runs as another
	EnvSocketDir  = "PLUGIN_UNIX_SOCKET_DIR"
	// EnvDescriptorsFD is the number of the plugin's end of a side channel
	// (sdk/plugin/descriptors). Only plugins that are given descriptors need one.
	EnvDescriptorsFD = launch.DescriptorsFD
)

// EnvReattach names plugins that were started by hand with --debug.
const EnvReattach = "NUCLEUS_REATTACH_PLUGINS"

// Cookie can be assigned to go-plugin's HandshakeConfig. A plugin is better off
// without that package, which costs its process a millisecond.
type Cookie = struct {
	ProtocolVersion  uint
	MagicCookieKey   string
	MagicCookieValue string
}

// Config is what go-plugin is to be configured with.
func Config() Cookie {
	return Cookie{
		ProtocolVersion:  AppProtocol,
		MagicCookieKey:   launch.CookieKey,
		MagicCookieValue: launch.CookieValue,
	}
}

// Reattach is where a running plugin is found.
type Reattach struct {
	Protocol        string `json:"protocol"`
	ProtocolVersion int    `json:"protocol_version"`
	Pid             int    `json:"pid"`
	Network         string `json:"network"`
	Addr            string `json:"addr"`
}

// ParseReattach reads the value of EnvReattach: plugins by name.
func ParseReattach(s string) (map[string]Reattach, error) {
	var m map[string]Reattach
	if err := json.Unmarshal([]byte(s), &m); err != nil {
		return nil, fmt.Errorf("reading %s: %w", EnvReattach, err)
	}
	for name, r := range m {
		if r.Protocol != Transport || r.ProtocolVersion != AppProtocol || r.Network != "unix" || r.Pid <= 0 {
			return nil, fmt.Errorf("reading %s: plugin %q speaks another protocol", EnvReattach, name)
		}
	}
	return m, nil
}
