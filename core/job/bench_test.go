package job

import (
	"os"
	"testing"
)

func BenchmarkParse(b *testing.B) {
	full, err := os.ReadFile("../../examples/full.hcl")
	if err != nil {
		b.Fatal(err)
	}
	for name, src := range map[string][]byte{"smallest": []byte(hello), "full": full} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, diags := Parse("job.hcl", src, Options{Dir: "/w"}); diags.HasErrors() {
					b.Fatal(diags)
				}
			}
		})
	}
}
