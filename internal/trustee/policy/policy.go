// Package policy compiles and evaluates Rego (OPA, Rego v1). A policy is
// prepared once and evaluated any number of times concurrently, each time
// with its own input and its own data document. What a policy can reach is an
// allow-list: pure functions only, no network, clock, randomness or process
// environment; an evaluation has a time limit.
package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/types"
)

// MaxText is the longest policy text, in bytes.
const MaxText = 256 << 10

// DefaultTimeout bounds one evaluation where [Options] say nothing.
const DefaultTimeout = 2 * time.Second

// Function is a builtin of one string argument that a policy may call. A nil
// document stands for null.
type Function func(ctx context.Context, arg string) (json.RawMessage, error)

// Options of [Compile].
type Options struct {
	// Name stands in error messages as the file name.
	Name string
	// Text is the module; its package must be "policy".
	Text string
	// Rules are the rules of package policy that will be evaluated.
	Rules []string
	// Functions are extra builtins by name.
	Functions map[string]Function
	// Timeout bounds one evaluation; zero means [DefaultTimeout].
	Timeout time.Duration
}

// Policy is a prepared policy, safe for concurrent use.
type Policy struct {
	name    string
	timeout time.Duration
	rules   map[string]rego.PreparedEvalQuery
}

// CompileError is a policy text that cannot be used. Its message holds the
// place (line and column).
type CompileError struct {
	Name string
	Err  error
}

func (e *CompileError) Error() string { return fmt.Sprintf("policy %s: %v", e.Name, e.Err) }

// Unwrap returns the cause.
func (e *CompileError) Unwrap() error { return e.Err }

// Compile checks and prepares a policy. Every error about the text is a
// *[CompileError].
func Compile(ctx context.Context, o Options) (*Policy, error) {
	if len(o.Text) > MaxText {
		return nil, &CompileError{o.Name, fmt.Errorf("expected at most %d bytes, got %d", MaxText, len(o.Text))}
	}
	module, err := ast.ParseModuleWithOpts(o.Name, o.Text, ast.ParserOptions{RegoVersion: ast.RegoV1, Capabilities: capabilities()})
	if err != nil {
		return nil, &CompileError{o.Name, err}
	}
	if module == nil {
		return nil, &CompileError{o.Name, errors.New("is empty: expected a module of package policy")}
	}
	if got := module.Package.Path.String(); got != "data.policy" {
		return nil, &CompileError{o.Name, fmt.Errorf("expected package policy, got package %s", strings.TrimPrefix(got, "data."))}
	}
	p := &Policy{name: o.Name, timeout: o.Timeout, rules: map[string]rego.PreparedEvalQuery{}}
	if p.timeout <= 0 {
		p.timeout = DefaultTimeout
	}
	for _, rule := range o.Rules {
		opts := []func(*rego.Rego){
			rego.ParsedModule(module.Copy()),
			rego.SetRegoVersion(ast.RegoV1),
			rego.Capabilities(capabilities()),
			rego.Store(requestStore{}),
			rego.StrictBuiltinErrors(true),
			rego.Query("data.policy." + rule),
		}
		for name, f := range o.Functions {
			opts = append(opts, function(name, f))
		}
		q, err := rego.New(opts...).PrepareForEval(ctx)
		if err != nil {
			return nil, &CompileError{o.Name, err}
		}
		p.rules[rule] = q
	}
	return p, nil
}

func function(name string, f Function) func(*rego.Rego) {
	decl := &rego.Function{Name: name, Decl: types.NewFunction(types.Args(types.S), types.A), Memoize: true}
	return rego.Function1(decl, func(bc rego.BuiltinContext, arg *ast.Term) (*ast.Term, error) {
		s, ok := arg.Value.(ast.String)
		if !ok {
			return nil, fmt.Errorf("%s: expected a string, got %s", name, arg)
		}
		doc, err := f(bc.Context, string(s))
		if err != nil {
			// Not "undefined": a policy must never be decided without the value.
			return nil, rego.NewHaltError(fmt.Errorf("%s(%q): %w", name, string(s), err))
		}
		if doc == nil {
			return ast.NullTerm(), nil
		}
		v, err := ast.ValueFromReader(strings.NewReader(string(doc)))
		if err != nil {
			return nil, rego.NewHaltError(fmt.Errorf("%s(%q): %w", name, string(s), err))
		}
		return ast.NewTerm(v), nil
	})
}

// Input is a document prepared for evaluation. It may be used for several
// evaluations.
type Input struct{ value ast.Value }

// NewInput prepares a JSON document.
func NewInput(doc json.RawMessage) (Input, error) {
	v, err := ast.ValueFromReader(strings.NewReader(string(doc)))
	if err != nil {
		return Input{}, fmt.Errorf("policy input: %w", err)
	}
	return Input{v}, nil
}

// Eval evaluates one rule named at [Compile] into out, as by json.Unmarshal.
// It reports false, and leaves out alone, where the rule is undefined. An
// evaluation that fails or does not end in time is an error.
func (p *Policy) Eval(ctx context.Context, rule string, in Input, data map[string]any, out any) (bool, error) {
	q, ok := p.rules[rule]
	if !ok {
		return false, fmt.Errorf("policy %s: rule %s was not prepared", p.name, rule)
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	// Plain JSON types, whatever the caller's slices and maps are made of.
	doc, err := json.Marshal(data)
	if err != nil {
		return false, fmt.Errorf("policy %s: data: %w", p.name, err)
	}
	var txn requestTxn
	if err := json.Unmarshal(doc, &txn.data); err != nil {
		return false, fmt.Errorf("policy %s: data: %w", p.name, err)
	}
	rs, err := q.Eval(ctx, rego.EvalParsedInput(in.value), rego.EvalTransaction(txn))
	if err != nil {
		if ctx.Err() != nil {
			return false, fmt.Errorf("policy %s: rule %s did not end within %v: %w", p.name, rule, p.timeout, ctx.Err())
		}
		return false, fmt.Errorf("policy %s: rule %s: %w", p.name, rule, err)
	}
	if len(rs) == 0 || len(rs[0].Expressions) == 0 {
		return false, nil
	}
	doc, err = json.Marshal(rs[0].Expressions[0].Value)
	if err != nil {
		return false, fmt.Errorf("policy %s: rule %s: %w", p.name, rule, err)
	}
	if err := json.Unmarshal(doc, out); err != nil {
		return false, fmt.Errorf("policy %s: rule %s has a value of the wrong type: %w", p.name, rule, err)
	}
	return true, nil
}

// requestStore is a read-only OPA store whose document travels in the
// transaction. So a prepared query, which is tied to one store, serves
// concurrent requests with different data and without a lock.
type requestStore struct {
	storage.TriggersNotSupported
	storage.WritesNotSupported
}

type requestTxn struct{ data map[string]any }

func (requestTxn) ID() uint64 { return 0 }

func (requestStore) NewTransaction(context.Context, ...storage.TransactionParams) (storage.Transaction, error) {
	return requestTxn{}, nil
}
func (requestStore) Commit(context.Context, storage.Transaction) error { return nil }
func (requestStore) Abort(context.Context, storage.Transaction)        {}
func (requestStore) Truncate(context.Context, storage.Transaction, storage.TransactionParams, storage.Iterator) error {
	return &storage.Error{Code: storage.WritesNotSupportedErr, Message: "read-only"}
}

// The store holds no policies; preparing a query asks all the same.

func (requestStore) ListPolicies(context.Context, storage.Transaction) ([]string, error) {
	return nil, nil
}

func (requestStore) GetPolicy(_ context.Context, _ storage.Transaction, id string) ([]byte, error) {
	return nil, &storage.Error{Code: storage.NotFoundErr, Message: id}
}

func (requestStore) UpsertPolicy(context.Context, storage.Transaction, string, []byte) error {
	return &storage.Error{Code: storage.WritesNotSupportedErr, Message: "read-only"}
}

func (requestStore) DeletePolicy(context.Context, storage.Transaction, string) error {
	return &storage.Error{Code: storage.WritesNotSupportedErr, Message: "read-only"}
}

func (requestStore) Read(_ context.Context, txn storage.Transaction, path storage.Path) (any, error) {
	t, _ := txn.(requestTxn)
	var doc any = map[string]any{}
	if t.data != nil {
		doc = t.data
	}
	for _, key := range path {
		ok := false
		switch d := doc.(type) {
		case map[string]any:
			doc, ok = d[key]
		case []any: // OPA asks for elements by their decimal index
			var i int
			if i, ok = index(key, len(d)); ok {
				doc = d[i]
			}
		}
		if !ok {
			return nil, &storage.Error{Code: storage.NotFoundErr, Message: path.String() + ": does not exist"}
		}
	}
	return doc, nil
}

func index(key string, n int) (int, bool) {
	i, err := strconv.Atoi(key)
	return i, err == nil && i >= 0 && i < n && strconv.Itoa(i) == key
}
