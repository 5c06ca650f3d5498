package vault

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/wipe"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// answerLimit is more than the longest secret that Vault keeps (1 MiB, in its
// default storage less).
const answerLimit = 4 << 20

// answer is what one location has, or why it has nothing.
type answer struct {
	err     error
	fields  map[string]raw
	version string
	lease   secrets.Lease
	ends    time.Time
}

// raw is a JSON value as it came.
type raw []byte

// UnmarshalJSON keeps a copy, which its answer overwrites.
func (r *raw) UnmarshalJSON(b []byte) error {
	*r = append(raw(nil), b...)
	return nil
}

// text is the value of a JSON string. The decoder hands a TextUnmarshaler bytes,
// where it would make a string for anything else.
type text []byte

// UnmarshalText takes the bytes, and overwrites those that the decoder would leave
// behind.
func (t *text) UnmarshalText(b []byte) error {
	*t = append(make(text, 0, len(b)), b...)
	wipe.Bytes(b[:len(b):len(b)]) // what follows is still being decoded
	return nil
}

func parse(at location, body []byte) (*answer, error) {
	unclear := func() error {
		return fault.New(fault.Unavailable, "see whether it is Vault that answers at the address", "read %s: the answer is not Vault's", at.path)
	}
	var envelope struct {
		LeaseID       string `json:"lease_id"`
		LeaseDuration int64  `json:"lease_duration"`
		Renewable     bool   `json:"renewable"`
		Data          raw    `json:"data"`
	}
	// The decoder's errors quote what they stumble over.
	if err := json.Unmarshal(body, &envelope); err != nil {
		wipe.Bytes(envelope.Data)
		return nil, unclear()
	}
	defer wipe.Bytes(envelope.Data)
	a := &answer{lease: secrets.Lease{
		ID: joinLease(at.namespace, envelope.LeaseID), Duration: time.Duration(envelope.LeaseDuration) * time.Second, Renewable: envelope.Renewable,
	}}
	if a.lease.ID == "" {
		a.lease = secrets.Lease{} // of kv1 the duration is advice about reading it again
	} else if a.lease.Duration > 0 {
		a.ends = time.Now().Add(a.lease.Duration)
	}
	if at.engine != kv2 {
		if err := json.Unmarshal(envelope.Data, &a.fields); err != nil {
			a.wipe()
			return nil, unclear()
		}
		return a, nil
	}
	var inner struct {
		Data     map[string]raw `json:"data"`
		Metadata *struct {
			Version int `json:"version"`
		} `json:"metadata"`
	}
	err := json.Unmarshal(envelope.Data, &inner)
	a.fields = inner.Data
	switch {
	case err != nil:
		a.wipe()
		return nil, unclear()
	case inner.Metadata == nil:
		a.wipe()
		return nil, fault.New(fault.FailedPrecondition, "write engine = \"kv1\" if the mount is of version 1", "read %s: the answer is not of a kv2 engine", at.path)
	}
	a.version = strconv.Itoa(inner.Metadata.Version)
	return a, nil
}

// secret gives one field. The value is the receiver's own copy.
func (a *answer) secret(t target) (secrets.Secret, error) {
	if a.err != nil {
		return secrets.Secret{}, a.err
	}
	field, ok := a.fields[t.field]
	if !ok || string(field) == "null" {
		return secrets.Secret{}, fault.New(fault.NotFound, "write field, or the field", "%s has no field %q", t.at.path, t.field)
	}
	s := secrets.Secret{Version: a.version, NotAfter: a.ends, Lease: a.lease}
	own := append([]byte(nil), field...)
	if own[0] != '"' {
		s.Value = own // a number, or an object for the job to parse
		return s, nil
	}
	var v text
	err := json.Unmarshal(own, &v)
	wipe.Bytes(own)
	if err != nil {
		return secrets.Secret{}, fault.New(fault.Internal, "", "%s: field %q is no JSON string", t.at.path, t.field)
	}
	s.Value = v
	return s, nil
}

func (a *answer) wipe() {
	for _, f := range a.fields {
		wipe.Bytes(f)
	}
}
