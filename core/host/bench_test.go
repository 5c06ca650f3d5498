package host

import "testing"

func BenchmarkQuick(b *testing.B) {
	for b.Loop() {
		if _, err := Quick(Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkToolchain(b *testing.B) {
	for b.Loop() {
		if len(toolchain("")) == 0 {
			b.Fatal("no toolchain")
		}
	}
}
