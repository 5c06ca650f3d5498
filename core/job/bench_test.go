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
	job := map[string]string{"full": "web"}
	for name, src := range map[string][]byte{"smallest": []byte(hello), "full": full} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, diags := Parse("job.hcl", src, Options{Dir: "/w", Job: job[name]}); diags.HasErrors() {
					b.Fatal(diags)
				}
			}
		})
	}
}
