package main

import (
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/provider/providertest"
)

func TestEachInstalledNameIsAProvider(t *testing.T) {
	for _, name := range strings.Fields(names) {
		t.Run(name, func(t *testing.T) {
			p, ok := called(name)
			if !ok {
				t.Fatal("it is none")
			}
			providertest.Configurable(t, p)
		})
	}
}

func TestAnotherNameIsNone(t *testing.T) {
	if _, ok := called("local"); ok {
		t.Error("it is one")
	}
}
