// Package explain says why a resource policy decided as it did: it evaluates a
// recorded decision again, against the recorded policy or a candidate for its
// successor, and follows every condition that did not hold down to what the
// claims really were.
package explain

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/internal/trustee/release"
	"github.com/coffer-project/coffer/kbs"
)

// Input is what a decision depended on, as records keep it.
type Input struct {
	// Label names the policy in the answer and in error messages.
	Label string
	// Text is the policy: the recorded version's, or a candidate's.
	Text string
	// Claims are the attestation token's claims, Data the policy's data document.
	Claims, Data json.RawMessage
	// Timeout bounds the whole explanation; zero means ten seconds.
	Timeout time.Duration
}

// defaultTimeout bounds an explanation where [Input] says nothing.
const defaultTimeout = 10 * time.Second

// Report explains one decision.
type Report struct {
	Policy  string       `json:"policy"`
	Granted bool         `json:"granted"`
	Reasons []kbs.Reason `json:"reasons,omitempty"`
	// Allow are the rules named allow, in the order of the text: one whose
	// conditions all hold grants.
	Allow []Rule `json:"allow"`
	// Needed says for the rule that was closest to granting what would have to
	// be otherwise: one line for each condition that nothing else explains.
	Needed []string `json:"needed,omitempty"`
}

// Rule is one body of a rule.
type Rule struct {
	Name string `json:"name"`
	// Line is where it stands in the text, from 1.
	Line       int         `json:"line"`
	Holds      bool        `json:"holds"`
	Conditions []Condition `json:"conditions,omitempty"`
}

// State of a condition.
type State string

// States of a condition.
const (
	Holds State = "holds"
	Fails State = "fails"
	// Unknown: it uses a variable of a condition that failed, or there were too
	// many to follow.
	Unknown State = "not evaluated"
)

// Condition is one line of a rule's body.
type Condition struct {
	Line  int    `json:"line"`
	Text  string `json:"text"`
	State State  `json:"state"`
	// Values are what the references in a failed condition stood for.
	Values []Value `json:"values,omitempty"`
	// Because are the rules that a failed condition relies on. All failed; but of
	// a condition "not rule" at least one holds.
	Because []Rule `json:"because,omitempty"`
}

// Value is what a reference stood for, in Rego's notation, or the word
// undefined. Long values are shortened.
type Value struct {
	Ref   string `json:"ref"`
	Value string `json:"value"`
}

// Explain evaluates a decision again. An error about the text is a
// *policy.CompileError.
func Explain(ctx context.Context, in Input) (Report, error) {
	if in.Timeout <= 0 {
		in.Timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, in.Timeout)
	defer cancel()
	ctx, stop := policy.Watch(ctx)
	defer stop()
	d, err := release.Replay(ctx, in.Label, in.Text, in.Claims, in.Data)
	if err != nil {
		return Report{}, err
	}
	r := Report{Policy: in.Label, Granted: d.Granted, Reasons: d.Reasons}
	e, err := newEvaluator(ctx, in)
	if err != nil {
		return Report{}, err
	}
	x := explainer{e: e}
	r.Allow = x.rules(ctx, "allow", nil, nil, 0)
	if err := ctx.Err(); err != nil {
		return Report{}, fmt.Errorf("explanation of %s did not end within %v or its memory: %w", in.Label, in.Timeout, context.Cause(ctx))
	}
	if !r.Granted {
		r.Needed = needed(r.Allow)
	}
	return r, nil
}

// needed lists the failed conditions of the rule that has the fewest. What
// stands for the elements of an every is needed all together.
func needed(rules []Rule) []string {
	var best, all []string
	for _, r := range rules {
		lines := leaves(r)
		if strings.HasPrefix(r.Name, everyPrefix) {
			for _, l := range lines {
				all = append(all, l+" ("+r.Name+")")
			}
			continue
		}
		if len(lines) > 0 && (best == nil || len(lines) < len(best)) {
			best = lines
		}
	}
	return append(all, best...)
}

func leaves(r Rule) []string {
	var out []string
	for _, c := range r.Conditions {
		if c.State != Fails {
			continue
		}
		if deeper := needed(c.Because); len(deeper) > 0 {
			out = append(out, deeper...)
			continue
		}
		line := fmt.Sprintf("line %d: %s", c.Line, c.Text)
		for i, v := range c.Values {
			sep := ", "
			if i == 0 {
				sep = ": but "
			}
			line += sep + v.Ref + " is " + v.Value
		}
		if !slices.Contains(out, line) {
			out = append(out, line)
		}
	}
	return out
}
