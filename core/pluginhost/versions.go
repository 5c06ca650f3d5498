package pluginhost

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/nucleus-runtime/nucleus/sdk/hooks"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// ours are the services that this core uses, in the versions that it knows.
var ours = []manifest.Version{{Service: manifest.Secrets, Version: secrets.Version}, {Service: manifest.Hooks, Version: hooks.Version}}

// selectVersions gives the version of each service that both sides know: the same
// major number, and the lower of the minor ones, since a higher one only adds. A
// plugin that was started for a service of which there is none cannot be used.
func selectVersions(name string, info manifest.Info, want manifest.Service) ([]manifest.Version, error) {
	var out []manifest.Version
	for _, v := range info.Services {
		i := slices.IndexFunc(ours, func(o manifest.Version) bool { return o.Service == v.Service })
		if i < 0 {
			continue
		}
		theirMajor, theirMinor, terr := numbersOf(v.Version)
		major, minor, err := numbersOf(ours[i].Version)
		switch {
		case err == nil && terr == nil && major == theirMajor:
			out = append(out, manifest.Version{Service: v.Service, Version: fmt.Sprintf("%d.%d", major, min(minor, theirMinor))})
		case v.Service == want:
			return nil, &Error{
				name, fmt.Errorf("it speaks version %q of %s, and this nucleus %s", v.Version, v.Service, ours[i].Version),
				"install a version of the plugin, or of nucleus, that goes with the other",
			}
		}
	}
	return out, nil
}

func numbersOf(version string) (major, minor uint64, err error) {
	a, b, _ := strings.Cut(version, ".")
	if major, err = strconv.ParseUint(a, 10, 16); err == nil && b != "" {
		minor, err = strconv.ParseUint(b, 10, 16)
	}
	return major, minor, err
}
