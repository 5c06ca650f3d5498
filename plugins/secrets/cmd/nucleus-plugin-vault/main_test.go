package main

import (
	"testing"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/provider/providertest"
)

func TestItCanBeConfigured(t *testing.T) { providertest.Configurable(t, self()) }
