package job

import "github.com/nucleus-runtime/nucleus/core/job/internal/grammar"

// FeatureNames are the names that allow_degraded takes.
func FeatureNames() []string { return grammar.Features() }
