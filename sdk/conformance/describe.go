package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"unicode"

	"github.com/zclconf/go-cty/cty"
	ctyjson "github.com/zclconf/go-cty/cty/json"
	"google.golang.org/protobuf/proto"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

func describes(ctx context.Context, k *Checker) error {
	if err := k.learn(ctx).describe; err != nil {
		return broken("%v", err)
	}
	return nil
}

// filePrefix is of a plugin's file: plugin "x" is nucleus-plugin-x.
const filePrefix = "nucleus-plugin-"

// Who links this package does not wait for them before main.
var (
	pluginName     = form(`^[a-z][a-z0-9-]{0,62}$`)
	versionForm    = form(`^[0-9]+\.[0-9]+$`)
	capabilityForm = form(`^CAP_[A-Z_]+$`)
	attributeName  = form(`^[a-z][a-z0-9_]{0,63}$`)
)

func form(s string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(s) })
}

func infoForm(_ context.Context, k *Checker) error {
	in := k.known.info
	var bad []error
	if !pluginName().MatchString(in.GetName()) {
		bad = append(bad, broken("name %q: lower-case letters, digits and dashes, a letter first", in.GetName()))
	}
	if file, ok := strings.CutPrefix(filepath.Base(k.conf.Binary), filePrefix); ok && file != in.GetName() {
		bad = append(bad, broken("name %q, and the file is %s%s", in.GetName(), filePrefix, file))
	}
	if v := in.GetVersion(); v == "" || len(v) > 64 || strings.ContainsFunc(v, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }) {
		bad = append(bad, broken("version %q: one word of at most 64 bytes", v))
	}
	if strings.ContainsAny(in.GetDescription(), "\r\n") {
		bad = append(bad, broken("description %q: one line", in.GetDescription()))
	}
	if len(in.GetServices()) == 0 {
		bad = append(bad, broken("it serves nothing"))
	}
	seen := map[pluginv1.Service]bool{}
	for _, s := range in.GetServices() {
		if seen[s.GetService()] || s.GetService() == pluginv1.Service_SERVICE_UNSPECIFIED || !versionForm().MatchString(s.GetVersion()) {
			bad = append(bad, broken("service %s in version %q: each once, in a version such as 1.0", s.GetService(), s.GetVersion()))
		}
		seen[s.GetService()] = true
	}
	for _, c := range in.GetNeeds().GetCapabilities() {
		if !capabilityForm().MatchString(c) {
			bad = append(bad, broken("needs capability %q: write it as CAP_NET_ADMIN", c))
		}
	}
	if _, ok := pluginv1.Lifetime_name[int32(in.GetLifetime())]; !ok {
		bad = append(bad, broken("lifetime %d", in.GetLifetime()))
	}
	return errors.Join(bad...)
}

func schemaForm(_ context.Context, k *Checker) error {
	bad := blockForm(nil, k.known.schema.Plugin)
	for service, b := range k.known.schema.Instance {
		served := false
		for _, v := range wire.FromVersions(k.known.info.GetServices()) {
			served = served || string(v.Service) == service
		}
		if !served {
			bad = append(bad, broken("a configuration of service %q, which it does not serve", service))
		}
		for _, err := range blockForm(nil, b) {
			bad = append(bad, fmt.Errorf("%s: %w", service, err))
		}
	}
	return errors.Join(bad...)
}

func blockForm(at errs.Steps, b *config.Block) (bad []error) {
	if b == nil {
		return nil
	}
	seen := map[string]bool{}
	named := func(name, description string) errs.Steps {
		p := append(append(errs.Steps{}, at...), errs.Step{Kind: errs.Block, Name: name})
		if !attributeName().MatchString(name) || seen[name] {
			bad = append(bad, broken("%s: a name is in lower case, with digits and underscores, and there once", p))
		}
		seen[name] = true
		if strings.TrimSpace(description) == "" {
			bad = append(bad, broken("%s has no description", p))
		}
		return p
	}
	for _, a := range b.Attrs {
		if err := attrForm(&a); err != nil {
			bad = append(bad, fmt.Errorf("%s: %w", named(a.Name, a.Description), err))
		} else {
			named(a.Name, a.Description)
		}
	}
	for _, n := range b.Blocks {
		p := named(n.Type, n.Block.Description)
		if n.Max > 0 && n.Min > n.Max {
			bad = append(bad, broken("%s: at least %d and at most %d", p, n.Min, n.Max))
		}
		bad = append(bad, blockForm(p, &n.Block)...)
	}
	return bad
}

func attrForm(a *config.Attr) error {
	c := &a.Constraint
	leaf := leafOf(a.Type)
	if _, err := regexp.Compile(c.Pattern); err != nil {
		return broken("its pattern: %v", err)
	}
	if (c.Enum != nil || c.Pattern != "" || c.Format != config.Free) && leaf != cty.String {
		return broken("enum, pattern and format are for text, and it is %s", leaf.FriendlyName())
	}
	if (c.Min != nil || c.Max != nil) && leaf != cty.Number {
		return broken("min and max are for numbers, and it is %s", leaf.FriendlyName())
	}
	if len(a.Default) == 0 {
		return nil
	}
	if a.Required {
		return broken("it is required, and has a default")
	}
	v, err := ctyjson.Unmarshal(a.Default, a.Type)
	if err != nil {
		return broken("its default: %v", err)
	}
	one := config.Block{Attrs: []config.Attr{*a}}
	for _, d := range one.Check(cty.ObjectVal(map[string]cty.Value{a.Name: v})) {
		if d.Severity == errs.Fault {
			return broken("its default is refused: %s", d.Summary)
		}
	}
	return nil
}

func pure(ctx context.Context, k *Checker) error {
	var first [2][]byte
	for n := range 2 {
		p, err := k.start(ctx, launch{})
		if err != nil {
			return err
		}
		for range 2 {
			for i, what := range []string{"Info", "ConfigSchema"} {
				got, err := description(ctx, p, what)
				switch {
				case err != nil:
					err = broken("%s: %s", what, tell(err))
				case first[i] == nil:
					first[i] = got
				case !bytes.Equal(first[i], got) && n == 0:
					err = broken("two calls of %s gave\n%q\n%q", what, first[i], got)
				case !bytes.Equal(first[i], got):
					err = broken("%s in two processes gave\n%q\n%q", what, first[i], got)
				}
				if err != nil {
					p.close()
					return err
				}
			}
		}
		p.close()
	}
	return nil
}

// description is an answer in one form for one content: maps have no order.
func description(ctx context.Context, p *process, what string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	var m proto.Message
	var err error
	if what == "Info" {
		m, err = p.base.Info(ctx, infoRequest())
	} else {
		m, err = p.base.ConfigSchema(ctx, &pluginv1.ConfigSchemaRequest{})
	}
	if err != nil {
		return nil, err
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}
