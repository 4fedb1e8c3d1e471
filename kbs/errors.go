package kbs

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// errorTypePrefix begins the type member of an error body.
const errorTypePrefix = "https://github.com/confidential-containers/kbs/errors/"

// ErrorType is the type member of an error body for one of the protocol's
// variants, for example "PolicyDeny".
func ErrorType(variant string) string { return errorTypePrefix + variant }

// ErrorInfo is the body of an error.
type ErrorInfo struct {
	// Type is a URI made by [ErrorType].
	Type string `json:"type"`
	// Detail is one sentence for people.
	Detail string `json:"detail"`
	// Reason says which rule refused, when a rule did. It is Coffer's
	// addition; other implementations ignore it.
	Reason *Reason `json:"reason,omitempty"`
	// Reasons are all of them, Reason the first.
	Reasons []Reason `json:"reasons,omitempty"`
}

// Reason explains a refusal.
type Reason struct {
	// Rule is a stable identifier of the rule that refused.
	Rule string `json:"rule"`
	// Claim names what the rule looked at.
	Claim    string `json:"claim,omitempty"`
	Expected string `json:"expected,omitempty"`
	Got      string `json:"got,omitempty"`
	// Help says what to do about it.
	Help string `json:"help,omitempty"`
}

// String is one line: rule, claim, expected, got, help.
func (r Reason) String() string {
	var b strings.Builder
	b.WriteString(r.Rule)
	if r.Claim != "" {
		b.WriteString(": " + r.Claim)
	}
	if r.Expected != "" || r.Got != "" {
		fmt.Fprintf(&b, ": expected %s, got %s", r.Expected, r.Got)
	}
	if r.Help != "" {
		fmt.Fprintf(&b, " (%s)", r.Help)
	}
	return b.String()
}

// StatusError is an answer other than success. 401 means: attest (again);
// 403: refused, see Info.Reason; 404: there is no such resource.
type StatusError struct {
	// Op is the method and path that were asked for.
	Op     string
	Status int
	Info   ErrorInfo
	// RetryAfter is how long the server asks to wait, 0 if it does not.
	RetryAfter time.Duration
}

func (e *StatusError) Error() string {
	s := fmt.Sprintf("kbs: %s: %d %s", e.Op, e.Status, http.StatusText(e.Status))
	if e.Info.Detail != "" {
		s += ": " + e.Info.Detail
	}
	if e.Info.Reason != nil {
		s += ": " + e.Info.Reason.String()
	}
	return s
}

// NewStatusError reads an error body. It never fails: a body that is no error
// document becomes the detail, shortened and without control characters, as
// all text from the other side does.
func NewStatusError(op string, status int, body []byte) *StatusError {
	e := &StatusError{Op: op, Status: status}
	if checkJSON(body, MaxErrorBytes) != nil || kind(body) != "object" || json.Unmarshal(body, &e.Info) != nil {
		e.Info = ErrorInfo{Detail: string(body)}
	}
	e.Info.Type = clip(e.Info.Type, 256)
	e.Info.Detail = strings.TrimSpace(clip(e.Info.Detail, 1024))
	if e.Info.Reason != nil {
		e.Info.Reason.clip()
	}
	e.Info.Reasons = e.Info.Reasons[:min(len(e.Info.Reasons), maxReasons)]
	for i := range e.Info.Reasons {
		e.Info.Reasons[i].clip()
	}
	return e
}

// maxReasons is how many reasons of an error body are kept.
const maxReasons = 16

// clip makes text of the other side fit to be shown.
func (r *Reason) clip() {
	r.Rule, r.Claim = clip(r.Rule, 128), clip(r.Claim, 256)
	r.Expected, r.Got, r.Help = clip(r.Expected, 1024), clip(r.Got, 1024), clip(r.Help, 1024)
}
