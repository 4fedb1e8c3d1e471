// Package explain says why a resource policy decided as it did: it evaluates a
// recorded decision again, against the recorded policy or a candidate for its
// successor, and follows every condition that did not hold down to what the
// claims really were.
package explain

import (
	"context"
	"encoding/json"
	"time"

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

// Report explains one decision.
type Report struct {
	Policy  string       `json:"policy"`
	Granted bool         `json:"granted"`
	Reasons []kbs.Reason `json:"reasons,omitempty"`
	// Allow are the rules named allow, in the order of the text: one whose
	// conditions all hold grants.
	Allow []Rule `json:"allow"`
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
	// Unknown: it uses a variable of a condition that failed.
	Unknown State = "not evaluated"
)

// Condition is one line of a rule's body.
type Condition struct {
	Line  int    `json:"line"`
	Text  string `json:"text"`
	State State  `json:"state"`
	// Values are what the references in a failed condition stood for, by
	// their text; "undefined" where there is no such thing.
	Values []Value `json:"values,omitempty"`
	// Because are the rules that a failed condition relies on.
	Because []Rule `json:"because,omitempty"`
}

// Value is what a reference stood for, as JSON or the word undefined.
type Value struct {
	Ref   string `json:"ref"`
	Value string `json:"value"`
}

// Explain evaluates a decision again. An error about the text is a
// *policy.CompileError.
func Explain(ctx context.Context, in Input) (Report, error) {
	return Report{}, nil
}
