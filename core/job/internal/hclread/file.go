// Package hclread owns reading one HCL file by schema: it bounds what a file
// may cost, evaluates expressions, converts values and collects every
// diagnostic. It knows no block or attribute by name: those are its callers'.
//
// It walks the syntax tree itself. gohcl would do much of this, but links
// hclwrite and go-cmp, whose package initialisation costs each start 0.8 ms.
package hclread

import (
	"bytes"
	"fmt"
	"sort"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// Limits of one file. HCL's parser is recursive and a Go stack that overflows
// can't be recovered from, so depth is checked before parsing.
const (
	MaxSize     = 1 << 20
	maxDepth    = 50
	maxChain    = 250
	smallEnough = 8 << 10 // below this no nesting overflows the stack
)

// ParseFile parses src after checking that it is safe to parse.
func ParseFile(name string, src []byte) (*hclsyntax.Body, hcl.Diagnostics) {
	start := hcl.Pos{Line: 1, Column: 1}
	if d := checkSource(name, src); d != nil {
		return nil, hcl.Diagnostics{d}
	}
	f, diags := hclsyntax.ParseConfig(src, name, start)
	if f == nil {
		return nil, diags
	}
	body, _ := f.Body.(*hclsyntax.Body)
	return body, diags
}

// ParseExpression parses text from a command line as an expression.
func ParseExpression(name string, src []byte) (hclsyntax.Expression, hcl.Diagnostics) {
	if d := checkSource(name, src); d != nil {
		return nil, hcl.Diagnostics{d}
	}
	return hclsyntax.ParseExpression(src, name, hcl.Pos{Line: 1, Column: 1})
}

func checkSource(name string, src []byte) *hcl.Diagnostic {
	at := func(off int) *hcl.Range {
		line := 1 + bytes.Count(src[:off], []byte{'\n'})
		col := off - bytes.LastIndexByte(src[:off], '\n')
		p := hcl.Pos{Line: line, Column: col, Byte: off}
		end := hcl.Pos{Line: line, Column: col + 1, Byte: min(off+1, len(src))}
		return &hcl.Range{Filename: name, Start: p, End: end}
	}
	if len(src) > MaxSize {
		return &hcl.Diagnostic{
			Severity: hcl.DiagError, Summary: "File too large",
			Detail:  fmt.Sprintf("The file has more than %d bytes. Move data into files of their own and name them here.", MaxSize),
			Subject: at(0),
		}
	}
	if i := bytes.IndexByte(src, 0); i >= 0 {
		return &hcl.Diagnostic{
			Severity: hcl.DiagError, Summary: "NUL byte in file",
			Detail:  "A file in HCL is text in UTF-8 without NUL bytes. Remove the byte; in a string no escape stands for it either.",
			Subject: at(i),
		}
	}
	if !utf8.Valid(src) {
		off := 0
		for off < len(src) {
			r, n := utf8.DecodeRune(src[off:])
			if r == utf8.RuneError && n == 1 {
				break
			}
			off += n
		}
		return &hcl.Diagnostic{
			Severity: hcl.DiagError, Summary: "File is not UTF-8",
			Detail:  "A file in HCL is text in UTF-8. Save it in that encoding.",
			Subject: at(off),
		}
	}
	if len(src) > smallEnough {
		return checkNesting(name, src)
	}
	return nil
}

// checkNesting walks the tokens (the scanner doesn't recurse) and refuses
// brackets nested too deeply and chains of operators that become a deep tree.
func checkNesting(name string, src []byte) *hcl.Diagnostic {
	tokens, _ := hclsyntax.LexConfig(src, name, hcl.Pos{Line: 1, Column: 1})
	type level struct {
		open  hclsyntax.TokenType
		chain int
	}
	stack := []level{{open: hclsyntax.TokenOBrace}}
	for _, t := range tokens {
		top := &stack[len(stack)-1]
		switch t.Type {
		case hclsyntax.TokenOBrace, hclsyntax.TokenOBrack, hclsyntax.TokenOParen,
			hclsyntax.TokenOQuote, hclsyntax.TokenOHeredoc,
			hclsyntax.TokenTemplateInterp, hclsyntax.TokenTemplateControl:
			if t.Type != hclsyntax.TokenTemplateInterp { // those lie side by side
				top.chain++ // an index, a call or a directive deepens its neighbours
			}
			stack = append(stack, level{open: t.Type})
		case hclsyntax.TokenCBrace, hclsyntax.TokenCBrack, hclsyntax.TokenCParen,
			hclsyntax.TokenCQuote, hclsyntax.TokenCHeredoc, hclsyntax.TokenTemplateSeqEnd:
			if len(stack) > 1 {
				stack = stack[:len(stack)-1]
			}
		case hclsyntax.TokenComma:
			top.chain = 0
		case hclsyntax.TokenNewline:
			if top.open == hclsyntax.TokenOBrace {
				top.chain = 0
			}
		case hclsyntax.TokenIdent, hclsyntax.TokenNumberLit, hclsyntax.TokenQuotedLit,
			hclsyntax.TokenStringLit, hclsyntax.TokenComment:
		default:
			top.chain++
		}
		top = &stack[len(stack)-1]
		chained := top.chain > maxChain
		if top.open == hclsyntax.TokenOQuote || top.open == hclsyntax.TokenOHeredoc {
			// In a template only directives count, and three make one condition.
			chained = top.chain > 4*maxChain
		}
		if len(stack) > maxDepth || chained {
			r := t.Range
			return &hcl.Diagnostic{
				Severity: hcl.DiagError, Summary: "Nested too deeply",
				Detail: fmt.Sprintf("At most %d levels of brackets and %d operators in one expression are read. "+
					"Split the expression with locals { ... }.", maxDepth, maxChain),
				Subject: &r,
			}
		}
	}
	return nil
}

// Sort orders diagnostics by file and position; those without a position come first.
func Sort(diags hcl.Diagnostics) {
	sort.SliceStable(diags, func(i, j int) bool {
		a, b := diags[i].Subject, diags[j].Subject
		switch {
		case a == nil || b == nil:
			return a == nil && b != nil
		case a.Filename != b.Filename:
			return a.Filename < b.Filename
		default:
			return a.Start.Byte < b.Start.Byte
		}
	})
}
