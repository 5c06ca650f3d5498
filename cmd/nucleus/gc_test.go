package main

import (
	"encoding/json"
	"testing"

	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/network"
)

func TestWhatWasCollectedAsJSON(t *testing.T) {
	for want, done := range map[string]core.Collected{
		`{"version":1,"collected":[],"networks":[]}`: {},
		`{"version":1,"collected":["ab"],"networks":[{"backend":"lan","removed":["link one","link two"]}]}`: {
			Sandboxes: []string{"ab"}, Networks: []network.Collected{{Backend: "lan", Removed: []string{"link one", "link two"}}},
		},
	} {
		if got, err := json.Marshal(collectedJSON(done)); err != nil || string(got) != want {
			t.Errorf("%s, %v, want %s", got, err, want)
		}
	}
}
