package hclread

import (
	"fmt"
	"sort"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
)

// maxNames bounds variables and locals: resolving one recurses into the next.
const maxNames = 1000

// scope is what an expression may refer to. Everything in it is made when
// first used, so that a file of literals pays for none of it.
type scope struct {
	funcs  map[string]function.Function
	host   HostFunctions
	vars   map[string]variable
	locals map[string]*local
	used   bool // by a config body that is decoded later
}

type variable struct {
	value  cty.Value
	failed bool
}

type local struct {
	attr     *hclsyntax.Attribute
	visiting bool
	done     bool
	value    cty.Value
	failed   bool
}

// HostFunctions says whether env and file read the host, and from where.
type HostFunctions struct {
	Allow bool
	Dir   string
}

// SetHostFunctions allows env and file.
func (r *Reader) SetHostFunctions(h HostFunctions) { r.scope.host = h }

// DefineVariable makes var.name known. A failed one has been reported: what
// refers to it is not reported again.
func (r *Reader) DefineVariable(name string, v cty.Value, failed bool) {
	if r.scope.vars == nil {
		r.scope.vars = make(map[string]variable)
	}
	r.scope.vars[name] = variable{v, failed}
}

// DefineLocals takes the attributes of a locals block.
func (r *Reader) DefineLocals(b Block) {
	for _, n := range b.Body.Blocks {
		r.Error(n.TypeRange, "Unknown block", fmt.Sprintf("locals holds attributes only: write %s = { ... }.", n.Type))
	}
	if r.scope.locals == nil {
		r.scope.locals = make(map[string]*local)
	}
	for _, a := range sortedAttrs(b.Body) {
		if first, dup := r.scope.locals[a.Name]; dup {
			r.Error(a.NameRange, "Duplicate local", fmt.Sprintf("%s was set at %s already. Remove one.", Quote(a.Name), first.attr.NameRange))
			continue
		}
		if len(r.scope.locals) == maxNames {
			r.Error(a.NameRange, "Too many locals", fmt.Sprintf("At most %d are read. Put values that belong together into one object.", maxNames))
			return
		}
		r.scope.locals[a.Name] = &local{attr: a}
	}
}

// ResolveLocals evaluates every local, used or not, so that each error is reported.
func (r *Reader) ResolveLocals() {
	locals := make([]*local, 0, len(r.scope.locals))
	for _, l := range r.scope.locals {
		locals = append(locals, l)
	}
	sort.Slice(locals, func(i, j int) bool {
		return locals[i].attr.SrcRange.Start.Byte < locals[j].attr.SrcRange.Start.Byte
	})
	for _, l := range locals {
		r.local(l, nil)
	}
}

func (r *Reader) local(l *local, path []string) bool {
	switch {
	case l.done:
		return !l.failed
	case l.visiting:
		names := path
		for i, n := range path {
			if n == l.attr.Name {
				names = path[i:]
				break
			}
		}
		at := firstName(names, r.scope.locals)
		r.Error(at.attr.NameRange, "Locals refer to each other", fmt.Sprintf("The value of local.%s depends on itself: local.%s. Take one of them out of the circle.",
			at.attr.Name, strings.Join(rotate(names, at.attr.Name), " -> local.")))
		return false
	}
	l.visiting = true
	l.value, l.failed = r.evalIn(&l.attr.Expr, append(path, l.attr.Name))
	l.visiting, l.done = false, true
	return !l.failed
}

// firstName picks the local of a circle that stands first in the file, so that
// the report doesn't depend on where the search began.
func firstName(names []string, locals map[string]*local) *local {
	var first *local
	for _, n := range names {
		if l := locals[n]; first == nil || l.attr.SrcRange.Start.Byte < first.attr.SrcRange.Start.Byte {
			first = l
		}
	}
	return first
}

func rotate(names []string, first string) []string {
	for i, n := range names {
		if n == first {
			out := append([]string{}, names[i:]...)
			return append(append(out, names[:i]...), first)
		}
	}
	return names
}

// Eval evaluates an expression within bounds, and reports whether it failed.
// The expression is replaced by its bounded form.
func (r *Reader) Eval(e *hclsyntax.Expression) (cty.Value, bool) {
	return r.evalIn(e, nil)
}

func (r *Reader) evalIn(e *hclsyntax.Expression, path []string) (cty.Value, bool) {
	ctx, ok := r.context(*e, path)
	*e = r.budget.bind(*e)
	if !ok {
		return cty.DynamicVal, true
	}
	v, diags := (*e).Value(ctx)
	r.Add(diags)
	if diags.HasErrors() || !v.IsWhollyKnown() {
		return cty.DynamicVal, true
	}
	return v, false
}

// context makes what e refers to, and reports what does not exist.
func (r *Reader) context(e hclsyntax.Expression, path []string) (*hcl.EvalContext, bool) {
	ok := true
	roots := map[string]map[string]cty.Value{}
	for _, t := range e.Variables() {
		root := t.RootName()
		name := ""
		at := t.SourceRange()
		if len(t) > 1 {
			name = stepName(t[1])
			at = hcl.RangeBetween(t[0].SourceRange(), t[1].SourceRange())
		}
		v, found := r.lookup(root, name, at, path)
		if !found {
			ok = false
			continue
		}
		if roots[root] == nil {
			roots[root] = map[string]cty.Value{}
		}
		roots[root][name] = v
	}
	ctx := &hcl.EvalContext{Variables: make(map[string]cty.Value, len(roots))}
	for root, vs := range roots {
		ctx.Variables[root] = cty.ObjectVal(vs)
	}
	if calls(e) {
		ctx.Functions = r.functions()
	}
	return ctx, ok
}

func stepName(t hcl.Traverser) string {
	switch t := t.(type) {
	case hcl.TraverseAttr:
		return t.Name
	case hcl.TraverseIndex:
		if t.Key.Type() == cty.String && t.Key.IsKnown() && !t.Key.IsNull() {
			return t.Key.AsString()
		}
	}
	return ""
}

func (r *Reader) lookup(root, name string, at hcl.Range, path []string) (cty.Value, bool) {
	switch root {
	case "var":
		v, found := r.scope.vars[name]
		switch {
		case found:
			return v.value, !v.failed
		case name == "":
			r.Error(at, "Incomplete reference", "Write var.NAME with the name of one variable.")
		default:
			r.Error(at, "Unknown variable", fmt.Sprintf("No variable %s is declared.%s Declare it: variable %s { type = string }.",
				Quote(name), didYouMean(name, r.variableNames()), Quote(name)))
		}
	case "local":
		l, found := r.scope.locals[name]
		switch {
		case found:
			ok := r.local(l, path)
			return l.value, ok
		case name == "":
			r.Error(at, "Incomplete reference", "Write local.NAME with the name of one local.")
		default:
			r.Error(at, "Unknown local", fmt.Sprintf("No local %s is defined.%s Define it: locals { %s = ... }.",
				Quote(name), didYouMean(name, r.localNames()), name))
		}
	default:
		detail := fmt.Sprintf("%s is not known in expressions. If it is text, write it in quotes: %s. Variables are written var.NAME, locals local.NAME.", root, Quote(root))
		if root == strings.ToUpper(root) { // as the environment's are
			detail = fmt.Sprintf("%s is not known in expressions. Write $${%s} for a ${%s} that a shell is to see, var.NAME for a variable of this file.", root, root, root)
		}
		if _, isVar := r.scope.vars[root]; isVar {
			detail = fmt.Sprintf("Write var.%s to use the variable, or %s in quotes if it is text.", root, Quote(root))
		} else if _, isLocal := r.scope.locals[root]; isLocal {
			detail = fmt.Sprintf("Write local.%s to use the local, or %s in quotes if it is text.", root, Quote(root))
		}
		r.Error(at, "Unknown name", detail)
	}
	return cty.DynamicVal, false
}

func didYouMean(name string, from []string) string {
	if s := Suggest(name, from); s != "" {
		return " Did you mean " + Quote(s) + "?"
	}
	return ""
}

func (r *Reader) variableNames() []string {
	names := make([]string, 0, len(r.scope.vars))
	for n := range r.scope.vars {
		names = append(names, n)
	}
	return sorted(names)
}

func (r *Reader) localNames() []string {
	names := make([]string, 0, len(r.scope.locals))
	for n := range r.scope.locals {
		names = append(names, n)
	}
	return sorted(names)
}

func (r *Reader) functions() map[string]function.Function {
	if r.scope.funcs == nil {
		r.scope.funcs = functions(r.scope.host)
	}
	return r.scope.funcs
}

// calls reports whether e calls a function anywhere.
func calls(e hclsyntax.Expression) bool {
	found := false
	// VisitAll's callback returns diagnostics of its own; there are none.
	_ = hclsyntax.VisitAll(e, func(n hclsyntax.Node) hcl.Diagnostics {
		if _, call := n.(*hclsyntax.FunctionCallExpr); call {
			found = true
		}
		return nil
	})
	return found
}

// Context returns everything that an expression of the file may refer to, for
// bodies that are decoded later, or nil if no such body needs it. The budget
// starts anew.
func (r *Reader) Context() *hcl.EvalContext {
	if !r.scope.used {
		return nil
	}
	r.budget = budget{used: 0}
	vars, locals := map[string]cty.Value{}, map[string]cty.Value{}
	for n, v := range r.scope.vars {
		vars[n] = v.value
	}
	for n, l := range r.scope.locals {
		locals[n] = l.value
	}
	return &hcl.EvalContext{
		Variables: map[string]cty.Value{"var": cty.ObjectVal(vars), "local": cty.ObjectVal(locals)},
		Functions: r.functions(),
	}
}
