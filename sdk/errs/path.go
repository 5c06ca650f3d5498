package errs

import (
	"fmt"
	"strings"
)

// StepKind says what a Step goes through.
type StepKind uint8

// The kinds.
const (
	Attr  StepKind = iota + 1 // an attribute, by name
	Block                     // a nested block, by its type
	Index                     // an element, by number
	Key                       // an element of a map, or a block by its label
)

// Step leads one level down in a configuration body.
type Step struct {
	Kind  StepKind
	Name  string // of Attr, Block and Key
	Index int64  // of Index
}

// Steps leads from a configuration body to the part that is meant.
type Steps []Step

// Path makes Steps of names and numbers: Path("route", 0, "dst") is the attribute
// dst of the first route block. A name with more behind it is taken for a block;
// where the schema says that it is an attribute, it becomes one on its way to the
// core. MapKey tells a key from a name.
func Path(steps ...any) Steps {
	out := make(Steps, 0, len(steps))
	for i, s := range steps {
		switch s := s.(type) {
		case string:
			kind := Block
			if i == len(steps)-1 {
				kind = Attr
			}
			out = append(out, Step{Kind: kind, Name: s})
		case int:
			out = append(out, Step{Kind: Index, Index: int64(s)})
		case Step:
			out = append(out, s)
		default:
			// An error about an error helps nobody: what it prints as is still a hint.
			out = append(out, Step{Kind: Attr, Name: fmt.Sprint(s)})
		}
	}
	return out
}

// MapKey is the Step to an element of a map, or to the block with that label.
func MapKey(key string) Step { return Step{Kind: Key, Name: key} }

func (p Steps) String() string {
	var b strings.Builder
	for _, s := range p {
		switch s.Kind {
		case Index:
			fmt.Fprintf(&b, "[%d]", s.Index)
		case Key:
			fmt.Fprintf(&b, "[%q]", s.Name)
		default:
			if b.Len() > 0 {
				b.WriteByte('.')
			}
			b.WriteString(s.Name)
		}
	}
	return b.String()
}
