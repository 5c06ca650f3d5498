package resolver

import (
	"container/list"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"
	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
)

const cached = 4096 // names

// found is what upstream said of a name. It does not change.
type found struct {
	seq     uint64 // a later one has a greater
	exists  bool
	v4, v6  []netip.Addr
	err4    error // the family could not be asked for, while the other has addresses
	err6    error
	soa     *dns.SOA // of a negative answer, if there was one
	err     error    // nothing is known
	expires time.Time
}

func (f *found) all() []netip.Addr { return slices.Concat(f.v4, f.v6) }

// cache keeps what was found for its time, the names used last. The zero value is
// empty and ready; it is its resolver's to lock.
type cache struct {
	byName map[dnsname.Name]*list.Element
	used   list.List // of *cacheEntry, the one used last in front
}

type cacheEntry struct {
	name  dnsname.Name
	found *found
}

func (c *cache) get(n dnsname.Name, now time.Time) *found {
	e, ok := c.byName[n]
	if !ok {
		return nil
	}
	f := e.Value.(*cacheEntry).found
	if !now.Before(f.expires) {
		c.drop(e)
		return nil
	}
	c.used.MoveToFront(e)
	return f
}

func (c *cache) put(n dnsname.Name, f *found) {
	if e, ok := c.byName[n]; ok {
		c.drop(e)
	}
	if c.used.Len() >= cached {
		c.drop(c.used.Back())
	}
	if c.byName == nil {
		c.byName = make(map[dnsname.Name]*list.Element)
	}
	c.byName[n] = c.used.PushFront(&cacheEntry{n, f})
}

func (c *cache) drop(e *list.Element) {
	delete(c.byName, e.Value.(*cacheEntry).name)
	c.used.Remove(e)
}
