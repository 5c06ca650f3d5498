// Package handshake is what a host and the SDK must agree on before the first
// call: names, the cookie, and how each makes sure who the other is.
package handshake

import (
	"encoding/json"
	"fmt"
	"net"
	"time"

	goplugin "github.com/hashicorp/go-plugin"

	"github.com/nucleus-runtime/nucleus/sdk/plugin/internal/launch"
)

// AppProtocol is the version of the wire's framing. Services have versions of
// their own, which a manifest names.
const AppProtocol = 1

// PluginName is the one name under which go-plugin serves and dispenses: a plugin
// has one connection for all of its services.
const PluginName = "nucleus"

// Environment variables that a host sets.
const (
	EnvCookie     = launch.CookieKey
	EnvLifelineFD = launch.LifelineFD // number of a descriptor; the plugin ends when it closes, unless Keep came by it
	EnvPeerUID    = launch.PeerUID    // the host's user, where the plugin runs as another
	EnvSocketDir  = goplugin.EnvUnixSocketDir
	// EnvDescriptorsFD is the number of the plugin's end of a side channel
	// (sdk/plugin/descriptors). Only plugins that are given descriptors need one.
	EnvDescriptorsFD = launch.DescriptorsFD
)

// Keep is what a host writes to the lifeline of a plugin with lifetime WARM_OK that it
// wants to stay when the lifeline closes: a line with the milliseconds that it is to
// wait without a connection before it ends. It comes that late so that no plugin
// outlives a host that was killed before others could know of it.
func Keep(d time.Duration) []byte { return fmt.Appendf(nil, "%d\n", d.Milliseconds()) }

// EnvReattach names plugins that were started by hand with --debug.
const EnvReattach = "NUCLEUS_REATTACH_PLUGINS"

// Config is go-plugin's.
func Config() goplugin.HandshakeConfig {
	return goplugin.HandshakeConfig{
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
		if r.Protocol != string(goplugin.ProtocolGRPC) || r.ProtocolVersion != AppProtocol || r.Network != "unix" || r.Pid <= 0 {
			return nil, fmt.Errorf("reading %s: plugin %q speaks another protocol", EnvReattach, name)
		}
	}
	return m, nil
}

// GoPlugin is r as go-plugin wants it.
func (r Reattach) GoPlugin() *goplugin.ReattachConfig {
	return &goplugin.ReattachConfig{
		Protocol: goplugin.ProtocolGRPC, ProtocolVersion: r.ProtocolVersion, Pid: r.Pid, Test: true,
		Addr: &net.UnixAddr{Name: r.Addr, Net: "unix"},
	}
}
