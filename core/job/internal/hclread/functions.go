package hclread

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
)

// functions returns what expressions may call. HCL links the standard library
// of functions anyway for its operators, so they cost no start time. Left out
// is what has a cost out of proportion to its input and can't be charged
// beforehand: regular expressions, products of sets, distinct, repetition.
func functions(h HostFunctions) map[string]function.Function {
	return map[string]function.Function{
		"abs":          stdlib.AbsoluteFunc,
		"base64decode": text1("base64decode", base64Decode),
		"base64encode": text1("base64encode", func(s string) (string, error) { return base64.StdEncoding.EncodeToString([]byte(s)), nil }),
		"basename":     text1("basename", func(s string) (string, error) { return path.Base(s), nil }),
		"ceil":         stdlib.CeilFunc,
		"chomp":        stdlib.ChompFunc,
		"coalesce":     stdlib.CoalesceFunc,
		"compact":      stdlib.CompactFunc,
		"concat":       stdlib.ConcatFunc,
		"contains":     stdlib.ContainsFunc,
		"dirname":      text1("dirname", func(s string) (string, error) { return path.Dir(s), nil }),
		"element":      stdlib.ElementFunc,
		"endswith":     test2("suffix", strings.HasSuffix),
		"env":          hostFunction(h, "name", func(s string) (string, error) { return os.Getenv(s), nil }),
		"file":         hostFunction(h, "path", func(s string) (string, error) { return readFile(h.Dir, s) }),
		"flatten":      stdlib.FlattenFunc,
		"floor":        stdlib.FloorFunc,
		"format":       formatFunc(),
		"join":         joinFunc(),
		"jsondecode":   stdlib.JSONDecodeFunc,
		"jsonencode":   stdlib.JSONEncodeFunc,
		"keys":         stdlib.KeysFunc,
		"length":       lengthFunc(),
		"lookup":       stdlib.LookupFunc,
		"lower":        stdlib.LowerFunc,
		"max":          stdlib.MaxFunc,
		"merge":        stdlib.MergeFunc,
		"min":          stdlib.MinFunc,
		"parseint":     stdlib.ParseIntFunc,
		"range":        stdlib.RangeFunc,
		"replace":      replaceFunc(),
		"reverse":      stdlib.ReverseListFunc,
		"sha256":       text1("sha256", func(s string) (string, error) { d := sha256.Sum256([]byte(s)); return hex.EncodeToString(d[:]), nil }),
		"slice":        stdlib.SliceFunc,
		"sort":         stdlib.SortFunc,
		"split":        stdlib.SplitFunc,
		"startswith":   test2("prefix", strings.HasPrefix),
		"substr":       stdlib.SubstrFunc,
		"tobool":       stdlib.MakeToFunc(cty.Bool),
		"tolist":       stdlib.MakeToFunc(cty.List(cty.DynamicPseudoType)),
		"tomap":        stdlib.MakeToFunc(cty.Map(cty.DynamicPseudoType)),
		"tonumber":     stdlib.MakeToFunc(cty.Number),
		"toset":        stdlib.MakeToFunc(cty.Set(cty.DynamicPseudoType)),
		"tostring":     stdlib.MakeToFunc(cty.String),
		"trim":         stdlib.TrimFunc,
		"trimprefix":   stdlib.TrimPrefixFunc,
		"trimspace":    stdlib.TrimSpaceFunc,
		"trimsuffix":   stdlib.TrimSuffixFunc,
		"upper":        stdlib.UpperFunc,
		"values":       stdlib.ValuesFunc,
		"zipmap":       stdlib.ZipmapFunc,
	}
}

var errTooLong = errors.New("the result would be longer than 1 MiB")

func text1(param string, f func(string) (string, error)) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: param, Type: cty.String}},
		Type:   function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			s, err := f(args[0].AsString())
			return cty.StringVal(s), err
		},
	})
}

func test2(param string, f func(s, part string) bool) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "text", Type: cty.String}, {Name: param, Type: cty.String}},
		Type:   function.StaticReturnType(cty.Bool),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			return cty.BoolVal(f(args[0].AsString(), args[1].AsString())), nil
		},
	})
}

func base64Decode(s string) (string, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	switch {
	case err != nil:
		return "", errors.New("not base64 text")
	case !utf8.Valid(b):
		return "", errors.New("the decoded bytes are not UTF-8 text")
	}
	return string(b), nil
}

// hostFunction is an error that says how to allow it, unless it is allowed.
func hostFunction(h HostFunctions, param string, f func(string) (string, error)) function.Function {
	return text1(param, func(s string) (string, error) {
		if !h.Allow {
			return "", errors.New("functions that read the host are off. Add -allow-host-functions to the command line, or pass the value with -var")
		}
		return f(s)
	})
}

func readFile(dir, name string) (string, error) {
	if !filepath.IsAbs(name) {
		name = filepath.Join(dir, name)
	}
	// O_NONBLOCK: a FIFO must be refused, not waited for.
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	switch st, err := f.Stat(); {
	case err != nil:
		return "", err
	case !st.Mode().IsRegular():
		return "", fmt.Errorf("%s is not a regular file", Quote(name))
	}
	b, err := io.ReadAll(io.LimitReader(f, maxString+1))
	switch {
	case err != nil:
		return "", err
	case len(b) > maxString:
		return "", fmt.Errorf("%s is larger than 1 MiB", Quote(name))
	case !utf8.Valid(b):
		return "", fmt.Errorf("%s is not UTF-8 text", Quote(name))
	}
	return string(b), nil
}

// joinFunc, replaceFunc and formatFunc know the length of their result
// beforehand; the standard ones find out by making it.
func joinFunc() function.Function {
	return function.New(&function.Spec{
		Params:   []function.Parameter{{Name: "separator", Type: cty.String}},
		VarParam: &function.Parameter{Name: "lists", Type: cty.List(cty.String)},
		Type:     function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			var parts []string
			total, sep := 0, args[0].AsString()
			for _, l := range args[1:] {
				for it := l.ElementIterator(); it.Next(); {
					_, e := it.Element()
					if e.IsNull() {
						return cty.DynamicVal, errors.New("an element is null")
					}
					parts = append(parts, e.AsString())
					if total += len(e.AsString()) + len(sep); total > maxString {
						return cty.DynamicVal, errTooLong
					}
				}
			}
			return cty.StringVal(strings.Join(parts, sep)), nil
		},
	})
}

func replaceFunc() function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "text", Type: cty.String}, {Name: "old", Type: cty.String}, {Name: "new", Type: cty.String}},
		Type:   function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			s, old, with := args[0].AsString(), args[1].AsString(), args[2].AsString()
			if len(s)+strings.Count(s, old)*len(with) > maxString {
				return cty.DynamicVal, errTooLong
			}
			return cty.StringVal(strings.ReplaceAll(s, old, with)), nil
		},
	})
}

func formatFunc() function.Function {
	return function.New(&function.Spec{
		Params:   []function.Parameter{{Name: "format", Type: cty.String}},
		VarParam: &function.Parameter{Name: "args", Type: cty.DynamicPseudoType, AllowNull: true},
		Type:     function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			f := args[0].AsString()
			if widest(f) > 1024 {
				return cty.DynamicVal, errors.New("widths and precisions above 1024 are not supported")
			}
			total := len(f)
			for _, a := range args[1:] { // each may be used by every verb
				if a.Type() == cty.String && !a.IsNull() {
					total += len(a.AsString()) * strings.Count(f, "%")
				}
			}
			if total > 64*maxString {
				return cty.DynamicVal, errTooLong
			}
			return stdlib.Format(args[0], args[1:]...)
		},
	})
}

// widest returns the largest number within the verbs of a format.
func widest(f string) int {
	most, number, verb := 0, 0, false
	for _, c := range f {
		switch {
		case c == '%':
			verb, number = !verb, 0
		case !verb:
		case c >= '0' && c <= '9':
			number = min(number*10+int(c-'0'), 1<<20)
			most = max(most, number)
		case strings.ContainsRune("+-# .[]*", c):
			number = 0
		default:
			verb = false
		}
	}
	return most
}

// lengthFunc counts characters of a string as well as elements.
func lengthFunc() function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "value", Type: cty.DynamicPseudoType}},
		Type:   function.StaticReturnType(cty.Number),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			v := args[0]
			switch ty := v.Type(); {
			case ty == cty.String:
				return stdlib.Strlen(v)
			case ty.IsObjectType() || ty.IsTupleType() || ty.IsCollectionType():
				return cty.NumberIntVal(int64(v.LengthInt())), nil
			default:
				return cty.DynamicVal, errors.New("a string, list, set, map or object has a length")
			}
		},
	})
}

func sorted(names []string) []string {
	sort.Strings(names)
	return names
}
