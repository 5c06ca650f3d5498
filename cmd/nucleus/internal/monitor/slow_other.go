//go:build !amd64

package monitor

// Slow needs assembly where there is some.
func Slow() {}
