package hclread

import (
	"fmt"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// A file may be small and its values huge: for expressions nest, strings
// double, a value that holds another twice is walked twice. HCL's evaluation
// can't be interrupted, so each node of an expression is replaced by one that
// charges what it made to a budget and stops at its end.
const (
	maxWork     = 1 << 18
	maxString   = 1 << 20
	maxExponent = 4096 // 1e999999999 is short to write and a gigabyte to print
)

type budget struct {
	used int
	// spent is the one diagnostic of a spent budget: loops that are under way
	// when it runs out report it once per element.
	spent *hcl.Diagnostic
}

type bounded struct {
	hclsyntax.Expression
	budget *budget
}

// Value evaluates the node and charges its result.
func (b bounded) Value(ctx *hcl.EvalContext) (cty.Value, hcl.Diagnostics) {
	b.budget.used++
	if b.budget.used > maxWork {
		if b.budget.spent == nil {
			b.budget.spent = b.over("does too much work")
		}
		return cty.DynamicVal, hcl.Diagnostics{b.budget.spent}
	}
	v, diags := b.Expression.Value(ctx)
	if diags.HasErrors() {
		return v, diags
	}
	if why := b.budget.charge(v); why != "" {
		return cty.DynamicVal, hcl.Diagnostics{b.over(why)}
	}
	return v, diags
}

func (b bounded) over(why string) *hcl.Diagnostic {
	r := b.Range()
	return &hcl.Diagnostic{
		Severity: hcl.DiagError, Summary: "Expression out of bounds",
		Detail:  fmt.Sprintf("This expression %s. A file describes one thing to run: shorten it, or make the data before and pass it by -var-file.", why),
		Subject: &r,
	}
}

// charge counts the nodes of v as often as they are reached, and says what is
// wrong if that is too much.
func (b *budget) charge(v cty.Value) string {
	b.used++
	if b.used > maxWork {
		return "does too much work"
	}
	if v.IsNull() || !v.IsKnown() {
		return ""
	}
	ty := v.Type()
	switch {
	case ty == cty.String:
		n := len(v.AsString())
		b.used += n / 64
		if n > maxString {
			return fmt.Sprintf("makes a string of %d bytes", n)
		}
	case ty == cty.Number:
		return checkNumber(v)
	case ty.IsCollectionType() || ty.IsTupleType() || ty.IsObjectType():
		for it := v.ElementIterator(); it.Next(); {
			_, e := it.Element()
			if why := b.charge(e); why != "" {
				return why
			}
		}
	}
	return ""
}

func checkNumber(v cty.Value) string {
	f := v.AsBigFloat()
	if f.IsInf() {
		return "makes an infinite number"
	}
	if e := f.MantExp(nil); e > maxExponent || e < -maxExponent {
		return "makes a number of more than a thousand digits"
	}
	return ""
}

// bind wraps every node below and including e.
func (b *budget) bind(e hclsyntax.Expression) hclsyntax.Expression {
	if e == nil {
		return nil
	}
	switch e := e.(type) {
	case bounded:
		return e
	case *hclsyntax.LiteralValueExpr:
		if e.Val.IsNull() || e.Val.Type() != cty.Number {
			return e
		}
	case *hclsyntax.AnonSymbolExpr:
		return e // a splat finds it by identity
	case *hclsyntax.ParenthesesExpr:
		e.Expression = b.bind(e.Expression)
	case *hclsyntax.RelativeTraversalExpr:
		e.Source = b.bind(e.Source)
	case *hclsyntax.FunctionCallExpr:
		b.bindAll(e.Args)
	case *hclsyntax.ConditionalExpr:
		e.Condition, e.TrueResult, e.FalseResult = b.bind(e.Condition), b.bind(e.TrueResult), b.bind(e.FalseResult)
	case *hclsyntax.IndexExpr:
		e.Collection, e.Key = b.bind(e.Collection), b.bind(e.Key)
	case *hclsyntax.TupleConsExpr:
		b.bindAll(e.Exprs)
	case *hclsyntax.ObjectConsExpr:
		for i := range e.Items {
			if k, ok := e.Items[i].KeyExpr.(*hclsyntax.ObjectConsKeyExpr); ok {
				// A bare name is a key, not a variable, and is told by its type.
				if _, name := k.Wrapped.(*hclsyntax.ScopeTraversalExpr); k.ForceNonLiteral || !name {
					k.Wrapped = b.bind(k.Wrapped)
				}
			}
			e.Items[i].ValueExpr = b.bind(e.Items[i].ValueExpr)
		}
	case *hclsyntax.ForExpr:
		e.CollExpr, e.KeyExpr, e.ValExpr, e.CondExpr = b.bind(e.CollExpr), b.bind(e.KeyExpr), b.bind(e.ValExpr), b.bind(e.CondExpr)
	case *hclsyntax.SplatExpr:
		e.Source, e.Each = b.bind(e.Source), b.bind(e.Each)
	case *hclsyntax.BinaryOpExpr:
		e.LHS, e.RHS = b.bind(e.LHS), b.bind(e.RHS)
	case *hclsyntax.UnaryOpExpr:
		e.Val = b.bind(e.Val)
	case *hclsyntax.TemplateExpr:
		b.bindAll(e.Parts)
	case *hclsyntax.TemplateJoinExpr:
		e.Tuple = b.bind(e.Tuple)
	case *hclsyntax.TemplateWrapExpr:
		e.Wrapped = b.bind(e.Wrapped)
	}
	return bounded{e, b}
}

func (b *budget) bindAll(es []hclsyntax.Expression) {
	for i := range es {
		es[i] = b.bind(es[i])
	}
}
