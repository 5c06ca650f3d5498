// Package processors owns how many threads of the process run Go code at a time, and how
// often the runtime looks at them.
package processors

import (
	"runtime"
	"sync"
)

var (
	mu    sync.Mutex
	all   int // what there was before One, 0 while it was not called
	users int
)

// One is for a program that does one thing after the other. With more, each goroutine
// that becomes ready wakes a thread that finds nothing to do, and the memory of each
// size is begun once for every processor.
func One() {
	mu.Lock()
	defer mu.Unlock()
	if all == 0 {
		all = runtime.GOMAXPROCS(1)
	}
}

// All undoes One for work that is worth it, until release, and tells how many there are.
func All() (n int, release func()) {
	mu.Lock()
	defer mu.Unlock()
	if all <= 1 {
		return runtime.GOMAXPROCS(0), func() {}
	}
	if users++; users == 1 {
		runtime.GOMAXPROCS(all)
	}
	return all, sync.OnceFunc(func() {
		mu.Lock()
		defer mu.Unlock()
		if users--; users == 0 {
			runtime.GOMAXPROCS(1)
		}
	})
}
