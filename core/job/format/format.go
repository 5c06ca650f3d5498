// Package format owns the canonical layout of job files. It stands apart from
// package job because hclwrite's dependencies cost start time, which only
// `nucleus fmt` should pay.
package format

import "github.com/hashicorp/hcl/v2/hclwrite"

// Source returns src in canonical layout: indentation, and equals signs and
// comments in columns. It changes no token.
func Source(src []byte) []byte { return hclwrite.Format(src) }
