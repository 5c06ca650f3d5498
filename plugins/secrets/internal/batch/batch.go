// Package batch owns what all providers promise of a Fetch: the values of all refs
// in their order, or none.
package batch

import (
	"bytes"
	"context"
	"sync"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/wipe"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// Instances are the configurations of a provider's secrets. The zero value is
// empty and ready; it may be used from several goroutines.
type Instances[C any] struct {
	mu sync.RWMutex
	m  map[string]C
}

// Put sets the configuration of an instance.
func (i *Instances[C]) Put(id string, c C) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.m == nil {
		i.m = make(map[string]C)
	}
	i.m[id] = c
}

// Get gives the configuration that a ref names.
func (i *Instances[C]) Get(ref secrets.Ref) (C, error) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	c, ok := i.m[ref.InstanceID]
	if !ok {
		return c, fault.New(fault.InvalidArgument, "configure it before it is fetched", "instance %q has no configuration", ref.InstanceID)
	}
	return c, nil
}

// Fetch gets one ref after the other. An optional one that is not there is absent;
// any other error is the batch's, and what was fetched until then is overwritten.
func Fetch(ctx context.Context, refs []secrets.Ref, get func(secrets.Ref) (secrets.Secret, error)) ([]secrets.Secret, error) {
	got := make([]secrets.Secret, 0, len(refs))
	for _, ref := range refs {
		err := context.Cause(ctx)
		var s secrets.Secret
		if err == nil {
			s, err = get(ref)
		}
		switch {
		case err == nil:
		case ref.Optional && fault.Of(err) == fault.NotFound:
			s = secrets.Secret{Absent: true}
		default:
			Wipe(got)
			return nil, fault.In(ref.Name, err)
		}
		s.Name = ref.Name
		got = append(got, s)
	}
	return got, nil
}

// Wipe overwrites the values of secrets that nobody will get.
func Wipe(ss []secrets.Secret) {
	for _, s := range ss {
		wipe.Bytes(s.Value)
	}
}

// Trim takes one newline off the end of a value, as editors put it there.
func Trim(v []byte) []byte {
	if line, ok := bytes.CutSuffix(v, []byte("\r\n")); ok {
		return line
	}
	return bytes.TrimSuffix(v, []byte("\n"))
}
