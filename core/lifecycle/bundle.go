package lifecycle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nucleus-runtime/nucleus/core/secret"
)

// secretVar is a variable whose value is a secret.
type secretVar struct {
	name   string
	origin string
	value  *secret.Value
}

// bundleConfig puts a config.json with its secret variables into sealed memory.
func bundleConfig(spec []byte, vars []secretVar) (*secret.Value, error) {
	if len(vars) == 0 {
		return secret.New(bytes.Clone(spec))
	}
	var s specs.Spec
	if err := json.Unmarshal(spec, &s); err != nil || s.Process == nil {
		return nil, phase("exec", errors.Join(errors.New("the runtime's config.json has no process"), err))
	}
	// The values are written between the two halves, so that no copy of them is made
	// that cannot be overwritten.
	s.Process.Env = append(s.Process.Env, mark)
	b, err := json.Marshal(&s)
	if err != nil {
		return nil, err
	}
	head, tail, ok := bytes.Cut(b, []byte(`"`+mark+`"`))
	if !ok || bytes.Contains(tail, []byte(mark)) {
		return nil, phase("exec", errors.New("the runtime's config.json cannot be completed"))
	}
	out := make([]byte, 0, secret.MaxValue+1)
	defer func() { clear(out[:cap(out)]) }()
	out = append(out, head...)
	for i, v := range vars {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(append(append(out, '"'), v.name...), '=')
		err := v.value.Read(func(value []byte) error {
			if !utf8.Valid(value) {
				return errors.New("the value is not UTF-8, which a variable is to be for this runtime: write target instead of env")
			}
			if len(out)+6*len(value)+len(tail) > secret.MaxValue {
				return fmt.Errorf("with its value the environment is larger than %d bytes: write target instead of env", secret.MaxValue)
			}
			out = appendJSON(out, value)
			return nil
		})
		if err != nil {
			return nil, &PhaseError{Phase: "secrets", Origin: v.origin, Err: err}
		}
		out = append(out, '"')
	}
	out = append(out, tail...)
	return secret.New(out)
}

// mark stands where the secret variables come to stand. It is no variable.
const mark = "@nucleus-secret-variables@"

// appendJSON appends text as it stands between the quotes of a JSON string.
func appendJSON(out, text []byte) []byte {
	const hex = "0123456789abcdef"
	for _, c := range text {
		switch {
		case c == '"' || c == '\\':
			out = append(out, '\\', c)
		case c < 0x20:
			out = append(out, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			out = append(out, c)
		}
	}
	return out
}
