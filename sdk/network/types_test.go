package network_test

import (
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/sdk/network"
)

func TestASetupComesAfterOneThatIsBeforeIt(t *testing.T) {
	for name, x := range map[string]struct {
		setups []network.Setup
		want   string // "" for no error
	}{
		"none":               {nil, ""},
		"after none":         {[]network.Setup{{Name: "a"}, {Name: "b"}}, ""},
		"after another":      {[]network.Setup{{Name: "a"}, {Name: "b", After: "a"}, {Name: "c", After: "a"}, {Name: "d", After: "c"}}, ""},
		"after nobody":       {[]network.Setup{{Name: "a"}, {Name: "b", After: "x"}}, `setup "b" comes after "x"`},
		"after a later one":  {[]network.Setup{{Name: "a", After: "b"}, {Name: "b"}}, `setup "a" comes after "b"`},
		"after itself":       {[]network.Setup{{Name: "a", After: "a"}}, `setup "a" comes after "a"`},
		"in a ring, by name": {[]network.Setup{{Name: "a", After: "b"}, {Name: "b", After: "a"}}, `setup "a" comes after "b"`},
	} {
		err := (&network.PrepareResponse{Setups: x.setups}).Check()
		if (err != nil) != (x.want != "") || err != nil && !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: error %v, want %q", name, err, x.want)
		}
	}
}
