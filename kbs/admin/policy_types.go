package admin

import (
	"encoding/json"
	"time"

	"github.com/coffer-project/coffer/kbs"
)

// Kinds of policy.
const (
	// PolicyAttestation appraises evidence; its id is name_class, for example
	// default_cpu.
	PolicyAttestation = "attestation"
	// PolicyResource releases resources; its id is a scope: "" for all, a
	// repository, repository/type, repository/type/tag, or +plugin/segment/…
	// The most specific one decides.
	PolicyResource = "resource"
)

// PolicyInfo describes a version of a policy.
type PolicyInfo struct {
	Kind string `json:"kind"`
	ID   string `json:"id"`
	// Version counts from 1; 0 is the built-in policy.
	Version int64     `json:"version"`
	Author  string    `json:"author,omitempty"`
	Created time.Time `json:"created,omitzero"`
	// Deleted: from this version on a less specific or the built-in policy is
	// in force.
	Deleted bool `json:"deleted,omitempty"`
}

// Policy is a version with its text.
type Policy struct {
	PolicyInfo
	Text string
}

// PolicyCheck asks whether a text could be stored.
type PolicyCheck struct {
	Kind string `json:"kind"`
	ID   string `json:"id"`
	Text string `json:"text"`
}

// PolicyProblems answer a check.
type PolicyProblems struct {
	OK bool `json:"ok"`
	// Problems each say where and what; none when OK.
	Problems []string `json:"problems"`
}

// ExplainRequest replays a recorded decision on a resource.
type ExplainRequest struct {
	// Seq or ID names the record.
	Seq int64  `json:"seq,omitempty"`
	ID  string `json:"id,omitempty"`
	// Text is a policy to try instead of the recorded one; empty: that one.
	Text string `json:"text,omitempty"`
}

// Explanation is what a replay found.
type Explanation struct {
	// Seq is the record's.
	Seq int64 `json:"seq"`
	// Recorded is what was decided then, Granted what the replay decides.
	Recorded bool `json:"recorded"`
	Granted  bool `json:"granted"`
	// Policy is the policy that was replayed, with its version.
	Policy  string       `json:"policy"`
	Reasons []kbs.Reason `json:"reasons,omitempty"`
	// Allow are the policy's rules that could have granted, in the text's
	// order: one whose conditions all hold does.
	Allow []Rule `json:"allow,omitempty"`
	// Needed says for the rule that was closest to granting what would have to
	// be otherwise, a line for each condition.
	Needed []string `json:"needed,omitempty"`
	// Data is the policy's data document at the time.
	Data json.RawMessage `json:"data,omitempty"`
}

// Rule is one body of a rule.
type Rule struct {
	Name string `json:"name"`
	// Line is where it stands in the text, from 1.
	Line       int         `json:"line"`
	Holds      bool        `json:"holds"`
	Conditions []Condition `json:"conditions,omitempty"`
}

// Condition is one expression of a rule.
type Condition struct {
	Line int    `json:"line"`
	Text string `json:"text"`
	// State is "holds", "fails", or "not evaluated" where an earlier one failed.
	State string `json:"state"`
	// Values are what the references in a failed condition stood for.
	Values []Value `json:"values,omitempty"`
	// Because are the rules that a failed condition relies on.
	Because []Rule `json:"because,omitempty"`
}

// Value is what a reference stood for, as JSON or the word undefined.
type Value struct {
	Ref   string `json:"ref"`
	Value string `json:"value"`
}
