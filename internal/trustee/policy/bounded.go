package policy

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// A few functions make something far larger than what they are given, in one
// step that no time limit interrupts: replace("aaa…", "a", "aaa…") squares its
// size. Whoever may write one tenant's policies could end the trustee that
// others share. So calls of them are compiled into calls of functions of our
// own, which look at the arguments first.

// maxResult is the largest result of one call, in bytes of text or, roughly,
// of memory.
const maxResult = 16 << 20

// boundedPrefix stands before the names of our functions.
const boundedPrefix = "bounded."

// termSize is what an element takes beside its text, in bytes.
const termSize = 16

// estimates are upper bounds of results, by the functions' names. They are
// computed as floats: none overflows.
func estimates() map[string]func(args []ast.Value) float64 {
	product := func(args []ast.Value) float64 { // each character replaced by the longest text
		return (size(args[0]) + 1) * (size(args[1]) + size(args[len(args)-1]) + 1)
	}
	sum := func(factor float64) func([]ast.Value) float64 {
		return func(args []ast.Value) (n float64) {
			for _, a := range args {
				n += factor * size(a)
			}
			return n
		}
	}
	return map[string]func(args []ast.Value) float64{
		"replace":                  replaced,
		"strings.replace_n":        product,
		"regex.replace":            func(args []ast.Value) float64 { return (size(args[0]) + 1) * (size(args[2]) + 1) },
		"sprintf":                  formatted,
		"concat":                   joined,
		"array.concat":             sum(1),
		"array.flatten":            sum(1),
		"base64.encode":            sum(2),
		"base64url.encode":         sum(2),
		"base64url.encode_no_pad":  sum(2),
		"hex.encode":               sum(2),
		"urlquery.encode":          sum(3),
		"json.marshal":             sum(6),
		"internal.template_string": sum(1),
		// What is taken apart becomes values.
		"split":          sum(termSize),
		"regex.split":    sum(termSize),
		"regex.find_n":   sum(termSize),
		"indexof_n":      sum(termSize),
		"json.unmarshal": sum(termSize),
		// Large numbers take time more than memory, by the square of their digits.
		"mul":     digits,
		"div":     digits,
		"product": digits,
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

func replaced(args []ast.Value) float64 {
	s, ok1 := args[0].(ast.String)
	old, ok2 := args[1].(ast.String)
	if !ok1 || !ok2 {
		return 0 // an error of the function's own
	}
	return float64(len(s)) + float64(strings.Count(string(s), string(old)))*size(args[2])
}

func joined(args []ast.Value) float64 {
	n := 0
	switch v := args[1].(type) {
	case *ast.Array:
		n = v.Len()
	case ast.Set:
		n = v.Len()
	}
	return size(args[1]) + float64(n)*size(args[0])
}

// formatted: every verb can show every argument, four characters for one, and
// be as wide as the format says.
func formatted(args []ast.Value) float64 {
	format, ok := args[0].(ast.String)
	if !ok {
		return 0
	}
	verbs, width := 0.0, 0.0
	for _, part := range strings.Split(string(format), "%")[1:] {
		verbs++
		number := 0.0
		for _, c := range part {
			switch {
			case c >= '0' && c <= '9':
				number = 10*number + float64(c-'0')
				continue
			case c == '*': // as wide as an argument says, at most what fmt takes
				number = 1e6
			case strings.ContainsRune("+-# .[]", c):
			default: // the verb
				c = 0
			}
			width, number = width+number, 0
			if c == 0 {
				break
			}
		}
		width += number
	}
	return float64(len(format)) + width + 4*verbs*size(args[1])
}

// digitSize is what a digit of a number counts for: some 8000 are the most.
const digitSize = 2 << 10

// digits are those of all numbers together, on either side of the point.
func digits(args []ast.Value) (n float64) {
	add := func(t *ast.Term) { n += digits([]ast.Value{t.Value}) }
	for _, a := range args {
		switch a := a.(type) {
		case ast.Number:
			mantissa, exponent, _ := strings.Cut(strings.ToLower(string(a)), "e")
			e, _ := strconv.ParseFloat(exponent, 64) // out of range: infinite
			n += digitSize * (float64(len(mantissa)) + math.Abs(e))
		case *ast.Array:
			a.Foreach(add)
		case ast.Set:
			a.Foreach(add)
		}
	}
	return n
}

// BoundFunctions are our functions, which queries need that use what a compiler
// of [Bound] has compiled.
func BoundFunctions() (options []func(*rego.Rego)) {
	for name, estimate := range estimates() {
		b, call := ast.BuiltinMap[name], topdown.GetBuiltin(name)
		if b == nil || call == nil {
			continue
		}
		own := boundedPrefix + name
		options = append(options, rego.FunctionDyn(&rego.Function{Name: own, Decl: b.Decl}, func(bc rego.BuiltinContext, terms []*ast.Term) (out *ast.Term, err error) {
			args := make([]ast.Value, len(terms))
			for i, t := range terms {
				args[i] = t.Value
			}
			if n := estimate(args); n > maxResult {
				return nil, rego.NewHaltError(fmt.Errorf("the result could take %.0f bytes: expected at most %d", n, maxResult))
			}
			err = call(bc, terms, func(t *ast.Term) error {
				out = t
				return nil
			})
			return out, err
		}))
	}
	return options
}

// declarations are those of our functions.
func declarations() map[string]*ast.Builtin {
	declared := map[string]*ast.Builtin{}
	for name := range estimates() {
		if b := ast.BuiltinMap[name]; b != nil {
			declared[boundedPrefix+name] = &ast.Builtin{Name: boundedPrefix + name, Decl: b.Decl}
		}
	}
	return declared
}

// Bound makes a compiler of Rego v1 that puts our functions in, and declares
// them in caps.
func Bound(caps *ast.Capabilities) *ast.Compiler {
	declared := declarations()
	caps.Builtins = slices.AppendSeq(caps.Builtins, maps.Values(declared))
	return ast.NewCompiler().WithCapabilities(caps).WithDefaultRegoVersion(ast.RegoV1).
		WithStageAfterID(ast.StageRewriteWithValues, ast.CompilerStageDefinition{
			Name: "BoundFunctions", MetricName: "compile_stage_bound_functions",
			Stage: func(c *ast.Compiler) *ast.Error {
				for _, m := range c.Modules {
					bind(m, declared)
				}
				return nil
			},
		})
}

// BoundBody does to a query that is not compiled yet what [Bound] does to
// modules. own reports whether a name is that of a rule of the policy's.
func BoundBody(b ast.Body, own func(name string) bool) {
	declared := declarations()
	maps.DeleteFunc(declared, func(name string, _ *ast.Builtin) bool { return own(strings.TrimPrefix(name, boundedPrefix)) })
	bind(b, declared)
}

// bind replaces the names of functions by those of ours. It runs when the
// compiler has told them from rules and variables of the same name.
func bind(x any, declared map[string]*ast.Builtin) {
	swap := func(t *ast.Term) *ast.Term {
		ref, ok := t.Value.(ast.Ref)
		if !ok {
			return t
		}
		b := declared[boundedPrefix+ref.String()]
		if b == nil {
			return t
		}
		return ast.NewTerm(b.Ref()).SetLocation(t.Location)
	}
	ast.NewGenericVisitor(func(x any) bool {
		switch x := x.(type) {
		case *ast.Expr:
			if terms, ok := x.Terms.([]*ast.Term); ok && len(terms) > 0 {
				terms[0] = swap(terms[0])
			}
		case *ast.Term:
			if c, ok := x.Value.(ast.Call); ok && len(c) > 0 {
				c[0] = swap(c[0])
			}
		case *ast.With: // a stand-in, or what another stands in for
			x.Target, x.Value = swap(x.Target), swap(x.Value)
		}
		return false
	}).Walk(x)
}
