package hclread

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// Reader reads one file. The zero value is not usable; see New.
type Reader struct {
	Diags hcl.Diagnostics
	// Ranges says where each attribute and block stands, by its path.
	Ranges map[string]hcl.Range

	scope  scope
	budget budget
}

// New returns a Reader without variables, locals or host functions.
func New() *Reader {
	return &Reader{Ranges: make(map[string]hcl.Range, 16)}
}

// Error reports what is wrong at r and what to write instead.
func (r *Reader) Error(at hcl.Range, summary, detail string) {
	r.Diags = append(r.Diags, &hcl.Diagnostic{Severity: hcl.DiagError, Summary: summary, Detail: detail, Subject: &at})
}

// Warn reports what is risky at r.
func (r *Reader) Warn(at hcl.Range, summary, detail string) {
	r.Diags = append(r.Diags, &hcl.Diagnostic{Severity: hcl.DiagWarning, Summary: summary, Detail: detail, Subject: &at})
}

// Add takes over diagnostics of HCL itself. Their expression and its values
// are dropped: a value may be something that must not be printed.
func (r *Reader) Add(diags hcl.Diagnostics) {
	for _, d := range diags {
		if d == r.budget.spent && d != nil {
			if r.reported(d) {
				continue
			}
		}
		d.Expression, d.EvalContext = nil, nil
		r.Diags = append(r.Diags, d)
	}
}

func (r *Reader) reported(d *hcl.Diagnostic) bool {
	for _, have := range r.Diags {
		if have == d {
			return true
		}
	}
	return false
}

// maxDiags is how many diagnostics anybody may want to read.
const maxDiags = 100

// Finish returns the diagnostics in file order, each once.
func (r *Reader) Finish() hcl.Diagnostics {
	if len(r.Diags) < 2 {
		return r.Diags
	}
	Sort(r.Diags)
	type key struct {
		file            string
		byte            int
		summary, detail string
	}
	seen := make(map[key]bool, len(r.Diags))
	kept := r.Diags[:0]
	for _, d := range r.Diags {
		k := key{summary: d.Summary, detail: d.Detail}
		if d.Subject != nil {
			k.file, k.byte = d.Subject.Filename, d.Subject.Start.Byte
		}
		if !seen[k] {
			seen[k] = true
			kept = append(kept, d)
		}
	}
	if more := len(kept) - maxDiags; more > 0 {
		// An error among the rest must stay one.
		rest := &hcl.Diagnostic{Severity: hcl.DiagWarning, Summary: "Too many problems", Detail: fmt.Sprintf("%d more are not shown. Mend these first.", more)}
		if kept[maxDiags:].HasErrors() {
			rest.Severity = hcl.DiagError
		}
		kept = append(kept[:maxDiags:maxDiags], rest)
	}
	r.Diags = kept
	return kept
}

// Block is a block to be read: where it stands, and what it is called.
type Block struct {
	Path  string // "" for a whole file
	What  string // how messages call it: "the resources block"
	Label string
	// LabelRange is the range of Label, or of the block's type without one.
	LabelRange hcl.Range
	Body       *hclsyntax.Body
	DefRange   hcl.Range
}

// Child returns the path of something in the block.
func (b Block) Child(name string) string {
	if b.Path == "" {
		return name
	}
	return b.Path + "." + name
}

// Attr is an attribute that a block may have.
type Attr struct {
	Name     string
	Required string // an example to write if the attribute must be there
	Read     func(Value)
}

// Nested is a block that a block may have.
type Nested struct {
	Name string
	// Label says what the label is ("a name"), "" if the block has none.
	Label string
	// Many allows several; Unique ones are told apart by their label, the
	// others by their index.
	Many, Unique bool
	// Path, if not nil, replaces the path made from the name.
	Path string
	Read func(Block)
}

// Schema is what a block may hold. Hints say what to write for names that
// other tools use.
type Schema struct {
	Attrs  []Attr
	Blocks []Nested
	Hints  map[string]string
}

// Read reads b by s: everything given is evaluated, recorded and handed to
// its function; everything else is an error.
func (r *Reader) Read(b Block, s Schema) {
	for _, a := range sortedAttrs(b.Body) {
		spec := findAttr(s.Attrs, a.Name)
		if spec == nil {
			r.unknown(b, s, a.Name, a.NameRange, false)
			continue
		}
		v := r.eval(b.Child(a.Name), a)
		if v.null() {
			continue
		}
		r.Ranges[v.Path] = a.SrcRange
		if !v.failed {
			spec.Read(v)
		}
	}
	r.readBlocks(b, s)
	for _, a := range s.Attrs {
		if a.Required == "" {
			continue
		}
		if have, given := b.Body.Attributes[a.Name]; given {
			if _, read := r.Ranges[b.Child(a.Name)]; read {
				continue
			}
			r.Error(have.SrcRange, "Missing value", fmt.Sprintf("%s must have a value here: write %s.", a.Name, a.Required))
			continue
		}
		r.Error(b.DefRange, "Missing "+a.Name, fmt.Sprintf("%s needs %s: write %s.", upperFirst(b.What), a.Name, a.Required))
	}
}

func (r *Reader) readBlocks(b Block, s Schema) {
	var first map[string]hcl.Range
	var count map[string]int
	for _, syn := range b.Body.Blocks {
		spec := findNested(s.Blocks, syn.Type)
		if spec == nil {
			r.unknown(b, s, syn.Type, syn.TypeRange, true)
			continue
		}
		nested := Block{Body: syn.Body, DefRange: syn.DefRange(), LabelRange: syn.TypeRange}
		if !r.label(&nested, spec, syn) {
			continue
		}
		if first == nil {
			first, count = make(map[string]hcl.Range), make(map[string]int)
		}
		nested.Path = b.Child(spec.Name)
		once := spec.Name
		switch {
		case spec.Path != "":
			nested.Path = spec.Path
		case spec.Unique:
			nested.Path += fmt.Sprintf("[%q]", nested.Label)
			once += nested.Label
		case spec.Many:
			nested.Path += fmt.Sprintf("[%d]", count[spec.Name])
		}
		if spec.Unique || !spec.Many {
			if at, dup := first[once]; dup {
				r.Error(nested.DefRange, "Duplicate "+spec.Name+" block",
					fmt.Sprintf("%s was given at %s already. %s", upperFirst(nested.What), at, onceMore(spec)))
				continue
			}
			first[once] = nested.DefRange
		}
		count[spec.Name]++
		r.Ranges[nested.Path] = nested.DefRange
		spec.Read(nested)
	}
}

func onceMore(n *Nested) string {
	if n.Unique {
		return "Give the second a label of its own, or remove one."
	}
	return "Put everything into one block."
}

func (r *Reader) label(b *Block, spec *Nested, syn *hclsyntax.Block) bool {
	b.What = "the " + spec.Name + " block"
	want := 0
	if spec.Label != "" {
		want = 1
	}
	if len(syn.Labels) > want {
		at := hcl.RangeBetween(syn.LabelRanges[want], syn.LabelRanges[len(syn.LabelRanges)-1])
		how := spec.Name + " { ... }"
		if want == 1 {
			how = fmt.Sprintf("%s %q { ... }", spec.Name, syn.Labels[0])
		}
		r.Error(at, "Too many labels", fmt.Sprintf("%s takes %s: write %s.", upperFirst(b.What), labelCount(want), how))
		return false
	}
	if len(syn.Labels) < want {
		r.Error(syn.TypeRange, "Missing label", fmt.Sprintf("%s needs %s as its label: write %s \"...\" { ... }.", upperFirst(b.What), spec.Label, spec.Name))
		return false
	}
	if want == 1 {
		b.Label, b.LabelRange = syn.Labels[0], syn.LabelRanges[0]
		b.What += " " + Quote(b.Label)
	}
	return true
}

func labelCount(n int) string {
	if n == 0 {
		return "no label"
	}
	return "one label"
}

// unknown reports a name that the schema does not have, with the nearest that it has.
func (r *Reader) unknown(b Block, s Schema, name string, at hcl.Range, isBlock bool) {
	kind, summary := "attribute", "Unknown attribute"
	if isBlock {
		kind, summary = "block", "Unknown block"
	}
	where := b.What
	if where == "" {
		where = "this file"
	}
	switch {
	case s.Hints[name] != "":
		r.Error(at, summary, fmt.Sprintf("There is no %s %s in %s. %s", kind, Quote(name), where, s.Hints[name]))
		return
	case isBlock && findAttr(s.Attrs, name) != nil:
		r.Error(at, "Attribute written as a block", fmt.Sprintf("%s is an attribute: write %s = ... with an equals sign.", Quote(name), name))
		return
	case !isBlock && findNested(s.Blocks, name) != nil:
		r.Error(at, "Block written as an attribute", fmt.Sprintf("%s is a block: write %s without an equals sign.", Quote(name), s.form(name)))
		return
	}
	var attrs, blocks []string
	for _, a := range s.Attrs {
		attrs = append(attrs, a.Name)
	}
	for _, n := range s.Blocks {
		blocks = append(blocks, n.Name)
	}
	known := attrs
	if isBlock {
		known = blocks
	}
	hint := SuggestOr(name, known)
	if near := Suggest(name, slices.Concat(attrs, blocks)); near != "" {
		hint = " Did you mean " + Quote(near) + "?"
		if !isBlock && findAttr(s.Attrs, near) == nil {
			hint = " Did you mean " + s.form(near) + "?"
		}
	}
	r.Error(at, summary, fmt.Sprintf("There is no %s %s in %s.%s", kind, Quote(name), where, hint))
}

// form is how a block is written.
func (s Schema) form(block string) string {
	if findNested(s.Blocks, block).Label != "" {
		return block + ` "..." { ... }`
	}
	return block + " { ... }"
}

func sortedAttrs(b *hclsyntax.Body) []*hclsyntax.Attribute {
	as := make([]*hclsyntax.Attribute, 0, len(b.Attributes))
	for _, a := range b.Attributes {
		as = append(as, a)
	}
	sort.Slice(as, func(i, j int) bool { return as[i].NameRange.Start.Byte < as[j].NameRange.Start.Byte })
	return as
}

func findAttr(as []Attr, name string) *Attr {
	for i := range as {
		if as[i].Name == name {
			return &as[i]
		}
	}
	return nil
}

func findNested(ns []Nested, name string) *Nested {
	for i := range ns {
		if ns[i].Name == name {
			return &ns[i]
		}
	}
	return nil
}

// Config checks that everything in b can be evaluated, for a body that is
// decoded later by somebody else's schema, and makes that evaluation bounded.
func (r *Reader) Config(b Block) hcl.Body {
	r.scope.used = true
	r.configBody(b.Path, b.Body)
	return b.Body
}

func (r *Reader) configBody(path string, body *hclsyntax.Body) {
	for _, a := range sortedAttrs(body) {
		v := r.eval(path+"."+a.Name, a)
		r.Ranges[v.Path] = a.SrcRange
	}
	for i, n := range body.Blocks {
		r.configBody(fmt.Sprintf("%s.%s[%d]", path, n.Type, i), n.Body)
	}
}

func (r *Reader) eval(path string, a *hclsyntax.Attribute) Value {
	v := Value{r: r, Path: path, Expr: a.Expr}
	if lit, ok := literal(a.Expr); ok {
		v.Cty = lit
		return v
	}
	v.Cty, v.failed = r.Eval(&a.Expr)
	return v
}

// literal evaluates what needs neither context nor bound: the size of its
// value is the size of its text.
func literal(e hclsyntax.Expression) (cty.Value, bool) {
	switch e := e.(type) {
	case *hclsyntax.LiteralValueExpr:
		if !e.Val.IsNull() && e.Val.Type() == cty.Number && checkNumber(e.Val) != "" {
			return cty.NilVal, false
		}
		return e.Val, true
	case *hclsyntax.TemplateExpr:
		if e.IsStringLiteral() {
			v, diags := e.Value(nil)
			return v, !diags.HasErrors()
		}
		if len(e.Parts) == 0 {
			return cty.StringVal(""), true
		}
	case *hclsyntax.TupleConsExpr:
		if len(e.Exprs) == 0 {
			return cty.EmptyTupleVal, true
		}
		vs := make([]cty.Value, len(e.Exprs))
		for i, x := range e.Exprs {
			v, ok := literal(x)
			if !ok {
				return cty.NilVal, false
			}
			vs[i] = v
		}
		return cty.TupleVal(vs), true
	}
	return cty.NilVal, false
}

func upperFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
