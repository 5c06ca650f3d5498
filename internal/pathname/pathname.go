// Package pathname owns what the names of paths say of each other, without a look at what is
// there: whoever trusts it has resolved them, or has init do so.
package pathname

import "strings"

// Within reports whether the clean absolute path p is dir or lies below it.
func Within(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}
