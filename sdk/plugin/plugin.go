// Package plugin makes a program a Nucleus plugin. An author fills in a Plugin and
// calls Serve from main; what the contract asks of every plugin is done there, and
// what an author must do is in the interfaces of sdk/network, sdk/runtime, sdk/secrets
// and sdk/hooks.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// SDKVersion is told to the core.
const SDKVersion = "0.1.0"

// Needs is what a plugin needs beyond the nothing that it gets.
type Needs = manifest.Needs

// The lifetimes of a plugin process. WarmOK means that it may stay for later hosts, which
// are other processes of the same user, and serves several sandboxes at once.
const (
	OneShot  = manifest.OneShot
	WarmOK   = manifest.WarmOK
	Resident = manifest.Resident
)

// Plugin is all that there is to say of one. At least one service is needed.
type Plugin struct {
	Name        string // as users write it: "vault"
	Version     string
	Description string // one line
	DocsURL     string

	Network network.Network // may be a Preparer, a Checker, a Watcher, a Joiner and a Collector besides
	Runtime runtime.Runtime
	Secrets secrets.Provider // may be a Renewer and a Revoker besides
	Hooks   hooks.Handler

	// What can be configured: the plugin as a whole, by its operator, and each of
	// a job's blocks that name it. Nil takes no configuration. Made by config.To.
	Config        config.Section
	NetworkConfig config.Section
	RuntimeConfig config.Section
	SecretsConfig config.Section
	HooksConfig   config.Section

	// HandleVersions are those of handles that the plugin understands, its own and
	// earlier ones. Calls with others are refused before they reach its code.
	HandleVersions []uint32

	Needs    Needs
	Lifetime manifest.Lifetime

	// Health is asked now and then. Nil is always well.
	Health func(ctx context.Context) manifest.Health
	// Close undoes what the process has taken for itself, such as a login. It is called
	// once, after the last call, when the host ends the plugin (Shutdown, SIGTERM) or one
	// that is kept has had no host for its time, and
	// may take five seconds. It is not called in a process that never served, that is
	// killed, or whose host is gone: what it would undo has to end by itself, too.
	Close func(ctx context.Context) error
	// Logger is for the plugin's host, which reads standard error. Nil is made by
	// NewLogger.
	Logger hclog.Logger
}

// validName needs no regular expression, which would take longer to compile than the
// rest of this package takes to start.
func validName(s string) bool {
	return s != "" && len(s) <= 63 && s[0] >= 'a' && s[0] <= 'z' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func (p *Plugin) check() error {
	var bad []error
	if !validName(p.Name) {
		bad = append(bad, fmt.Errorf("name %q: lower-case letters, digits and dashes, please, a letter first", p.Name))
	}
	if p.Version == "" {
		bad = append(bad, errors.New("it has no version"))
	}
	if p.Network == nil && p.Runtime == nil && p.Secrets == nil && p.Hooks == nil {
		bad = append(bad, errors.New("it serves nothing: set Network, Runtime, Secrets or Hooks"))
	}
	if p.NetworkConfig != nil && p.Network == nil || p.RuntimeConfig != nil && p.Runtime == nil ||
		p.SecretsConfig != nil && p.Secrets == nil || p.HooksConfig != nil && p.Hooks == nil {
		bad = append(bad, errors.New("it has a configuration for a service that it does not serve"))
	}
	if slices.Contains(p.HandleVersions, 0) {
		bad = append(bad, errors.New("0 is no version of a handle: it stands for none"))
	}
	if _, err := p.schema(); err != nil {
		bad = append(bad, err)
	}
	return errors.Join(bad...)
}

func (p *Plugin) info() manifest.Info {
	in := manifest.Info{
		Name: p.Name, Version: p.Version, SDKVersion: SDKVersion, Description: p.Description, DocsURL: p.DocsURL,
		Needs: p.Needs, Lifetime: p.Lifetime, HandleVersions: p.HandleVersions,
	}
	feature := func(has bool, name string) {
		if has {
			in.Features = append(in.Features, name)
		}
	}
	feature(p.Close != nil, manifest.FeatureClose)
	if p.Network != nil {
		in.Services = append(in.Services, manifest.Version{Service: manifest.Network, Version: network.Version})
		feature(is[network.Preparer](p.Network), network.FeaturePrepare)
		feature(is[network.Checker](p.Network), network.FeatureStatus)
		feature(is[network.Collector](p.Network), network.FeatureGC)
		feature(is[network.Watcher](p.Network), network.FeatureWatch)
		feature(is[network.Joiner](p.Network), network.FeatureStack)
		feature(is[network.MemberDialer](p.Network), network.FeatureDialMember)
	}
	if p.Runtime != nil {
		in.Services = append(in.Services, manifest.Version{Service: manifest.Runtime, Version: runtime.Version})
	}
	if p.Secrets != nil {
		in.Services = append(in.Services, manifest.Version{Service: manifest.Secrets, Version: secrets.Version})
		feature(is[secrets.Renewer](p.Secrets), secrets.FeatureRenew)
		feature(is[secrets.Revoker](p.Secrets), secrets.FeatureRevoke)
	}
	if p.Hooks != nil {
		in.Services = append(in.Services, manifest.Version{Service: manifest.Hooks, Version: hooks.Version})
	}
	return in
}

func is[T any](v any) bool {
	_, ok := v.(T)
	return ok
}

// section is what an instance of a service is configured by; "" is the plugin.
func (p *Plugin) section(s manifest.Service) config.Section {
	switch s {
	case "":
		return p.Config
	case manifest.Network:
		return p.NetworkConfig
	case manifest.Runtime:
		return p.RuntimeConfig
	case manifest.Secrets:
		return p.SecretsConfig
	case manifest.Hooks:
		return p.HooksConfig
	default:
		return nil
	}
}

func (p *Plugin) schema() (config.Schema, error) {
	out := config.Schema{Instance: map[string]*config.Block{}}
	for _, s := range []manifest.Service{"", manifest.Network, manifest.Runtime, manifest.Secrets, manifest.Hooks} {
		sec := p.section(s)
		if sec == nil {
			continue
		}
		b, err := sec.Schema()
		switch {
		case err != nil && s == "":
			return out, fmt.Errorf("its configuration: %w", err)
		case err != nil:
			return out, fmt.Errorf("the configuration of %s: %w", s, err)
		case s == "":
			out.Plugin = b
		default:
			out.Instance[string(s)] = b
		}
	}
	return out, nil
}
