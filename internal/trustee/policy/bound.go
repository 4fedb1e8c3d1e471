package policy

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// Bounds of what one call makes of its arguments: bytes of a string, bytes of a
// text that is taken apart, each of which may become a value; decimal digits
// of a number.
const (
	maxResult = 16 << 20
	maxParsed = 4 << 20
	maxDigits = 10_000
)

// termSize is what a value takes besides its text, in bytes.
const termSize = 16

// boundedPrefix is what the names of bounded builtins begin with. Policies do
// not write them: [Bound] does.
const boundedPrefix = "coffer.bounded."

// estimate says how large a builtin's result is at most.
type estimate struct {
	limit int64
	size  func(args []*ast.Term) int64
}

// estimates are of builtins that build all of their result before anything can
// end them, where it grows as the product of their arguments, or by calling
// them again and again: a policy of a few lines would take all memory or keep a
// processor for hours in one call.
func estimates() map[string]estimate {
	return map[string]estimate{
		ast.Concat.Name:   {maxResult, concatSize},
		ast.Sprintf.Name:  {maxResult, sprintfSize},
		ast.Replace.Name:  {maxResult, replaceSize},
		ast.ReplaceN.Name: {maxResult, func(args []*ast.Term) int64 { return replacedSize(args[1], longestValue(args[0])) }},
		// Each of the value's characters but one could stand for all that matched.
		ast.RegexReplace.Name:  {maxResult, func(args []*ast.Term) int64 { return replacedSize(args[0], 2*textSize(args[2])) }},
		ast.Split.Name:         {maxParsed, func(args []*ast.Term) int64 { return textSize(args[0]) }},
		ast.RegexSplit.Name:    {maxParsed, func(args []*ast.Term) int64 { return textSize(args[1]) }},
		ast.RegexFind.Name:     {maxParsed, func(args []*ast.Term) int64 { return textSize(args[1]) }},
		ast.IndexOfN.Name:      {maxParsed, func(args []*ast.Term) int64 { return textSize(args[0]) }},
		ast.JSONUnmarshal.Name: {maxParsed, func(args []*ast.Term) int64 { return textSize(args[0]) }},
		// What grows by a factor grows without end where it is done again and again.
		ast.ArrayConcat.Name:            {maxResult, grown(1)},
		ast.ArrayFlatten.Name:           {maxResult, grown(1)},
		ast.Base64Encode.Name:           {maxResult, grown(2)},
		ast.Base64UrlEncode.Name:        {maxResult, grown(2)},
		ast.Base64UrlEncodeNoPad.Name:   {maxResult, grown(2)},
		ast.HexEncode.Name:              {maxResult, grown(2)},
		ast.URLQueryEncode.Name:         {maxResult, grown(3)},
		ast.JSONMarshal.Name:            {maxResult, grown(6)},
		ast.InternalTemplateString.Name: {maxResult, grown(1)},
		ast.Multiply.Name:               {maxDigits, digitsOfAll},
		ast.Divide.Name:                 {maxDigits, digitsOfAll},
		ast.Product.Name:                {maxDigits, func(args []*ast.Term) int64 { return elements(args[0], digits) }},
	}
}

// grown is a result of so many times its arguments' size.
func grown(factor float64) func([]*ast.Term) int64 {
	return func(args []*ast.Term) int64 {
		n := 0.0 // no sum of sizes overflows a float
		for _, a := range args {
			n += factor * size(a.Value)
		}
		return int64(min(n, math.MaxInt32<<20))
	}
}

// size is roughly what a value takes as text or in memory.
func size(v ast.Value) (n float64) {
	switch v := v.(type) {
	case ast.String:
		return float64(len(v))
	case ast.Number:
		return float64(len(v))
	case *ast.Array:
		v.Foreach(func(t *ast.Term) { n += termSize + size(t.Value) })
	case ast.Set:
		v.Foreach(func(t *ast.Term) { n += termSize + size(t.Value) })
	case ast.Object:
		v.Foreach(func(k, t *ast.Term) { n += 2*termSize + size(k.Value) + size(t.Value) })
	default:
		n = termSize
	}
	return n
}

// elements adds up what f says of a collection's elements.
func elements(collection *ast.Term, f func(*ast.Term) int64) int64 {
	var n int64
	add := func(t *ast.Term) { n += f(t) }
	switch c := collection.Value.(type) {
	case *ast.Array:
		c.Foreach(add)
	case ast.Set:
		c.Foreach(add)
	}
	return n
}

// digits are how many a number has, on either side of the point.
func digits(t *ast.Term) int64 {
	s, _ := t.Value.(ast.Number)
	mantissa, exponent, _ := strings.Cut(strings.ToLower(string(s)), "e")
	e, _ := strconv.ParseInt(exponent, 10, 64) // out of range: the nearest number
	return int64(len(mantissa)) + max(e, -max(e, -math.MaxInt64))
}

func digitsOfAll(args []*ast.Term) int64 {
	var n int64
	for _, t := range args {
		n += digits(t)
	}
	return n
}

func textSize(t *ast.Term) int64 {
	s, _ := t.Value.(ast.String)
	return int64(len(s))
}

// replaceSize is the length of replace(text, old, new).
func replaceSize(args []*ast.Term) int64 {
	s, _ := args[0].Value.(ast.String)
	old, _ := args[1].Value.(ast.String)
	return int64(len(s)) + int64(strings.Count(string(s), string(old)))*textSize(args[2])
}

// replacedSize is that of a text with at most so many bytes in the place of
// each of its characters, and in between.
func replacedSize(text *ast.Term, with int64) int64 {
	n := textSize(text)
	return n + (n+1)*with
}

func longestValue(t *ast.Term) int64 {
	var n int64
	if o, ok := t.Value.(ast.Object); ok {
		o.Foreach(func(_, v *ast.Term) { n = max(n, textSize(v)) })
	}
	return n
}

// concatSize is the length of concat(delimiter, collection).
func concatSize(args []*ast.Term) int64 {
	delimiter, _ := args[0].Value.(ast.String)
	return elements(args[1], func(t *ast.Term) int64 { return textSize(t) + int64(len(delimiter)) })
}

// sprintfSize is more than what sprintf(format, values) has: every verb could
// print the longest value, escaped, and every number be a width, of which
// package fmt takes up to a million.
func sprintfSize(args []*ast.Term) int64 {
	const widest, number, escaped = 1_000_000, 512, 6
	s, _ := args[0].Value.(ast.String)
	format := string(s)
	longest := int64(number)
	if values, ok := args[1].Value.(*ast.Array); ok {
		values.Foreach(func(t *ast.Term) {
			var n int
			switch v := t.Value.(type) {
			case ast.String:
				n = len(v)
			case ast.Number:
				n = len(v)
			default:
				n = len(v.String())
			}
			longest = max(longest, escaped*int64(n))
		})
	}
	n := int64(len(format)) + int64(strings.Count(format, "%"))*longest + int64(strings.Count(format, "*"))*widest
	for run := range strings.FieldsFuncSeq(format, func(r rune) bool { return r < '0' || r > '9' }) {
		if w, err := strconv.ParseInt(run, 10, 64); err == nil {
			n += min(w, widest)
		}
	}
	return n
}

// Bound makes a compiler of Rego v1 that puts bounded builtins in the place of
// those whose result can be far larger than their arguments, and adds them to
// caps. Queries that use what it compiles need [BoundFunctions].
func Bound(caps *ast.Capabilities) *ast.Compiler {
	for name := range estimates() {
		caps.Builtins = append(caps.Builtins, &ast.Builtin{Name: boundedPrefix + name, Decl: ast.BuiltinMap[name].Decl})
	}
	// After the last check, so that messages have the names that authors wrote.
	return ast.NewCompiler().WithDefaultRegoVersion(ast.RegoV1).WithCapabilities(caps).WithStageAfterID(ast.StageCheckDeprecatedBuiltins, ast.CompilerStageDefinition{
		Name: "BoundBuiltins", MetricName: "compile_stage_bound_builtins",
		Stage: func(c *ast.Compiler) *ast.Error {
			for _, m := range c.Modules {
				if err := boundRules(m.Rules); err != nil {
					return ast.NewError(ast.CompileErr, m.Package.Location, "%v", err)
				}
			}
			return nil
		},
	})
}

// boundRules leaves the names of rules alone. In bodies what is the policy's own
// has its whole path by now.
func boundRules(rules []*ast.Rule) error {
	for _, r := range rules {
		for ; r != nil; r = r.Else {
			own := func(string) bool { return false }
			if err := boundRefs(r.Body, own); err != nil {
				return err
			}
			if r.Head.Value != nil {
				if err := boundRefs(r.Head.Value, own); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// BoundBody does to a query that is not compiled yet what [Bound] does to
// modules. own reports whether a name is that of a rule of the policy's.
func BoundBody(b ast.Body, own func(name string) bool) error { return boundRefs(b, own) }

func boundRefs(x any, own func(name string) bool) error {
	names := estimates()
	_, err := ast.TransformRefs(x, func(r ast.Ref) (ast.Value, error) {
		if name := r.String(); names[name].size != nil && !own(name) {
			return ast.MustParseRef(boundedPrefix + name), nil
		}
		return r, nil
	})
	return err
}

// BoundFunctions are the builtins that [Bound] puts in.
func BoundFunctions() []func(*rego.Rego) {
	var out []func(*rego.Rego)
	for name, e := range estimates() {
		call := topdown.GetBuiltin(name)
		out = append(out, rego.FunctionDyn(&rego.Function{Name: boundedPrefix + name, Decl: ast.BuiltinMap[name].Decl},
			func(bc rego.BuiltinContext, args []*ast.Term) (*ast.Term, error) {
				if n := e.size(args); n > e.limit {
					return nil, rego.NewHaltError(fmt.Errorf("expected at most %d characters of text or digits to work on, got up to %d", e.limit, n))
				}
				var result *ast.Term
				err := call(bc, args, func(t *ast.Term) error {
					result = t
					return nil
				})
				return result, err
			}))
	}
	return out
}
