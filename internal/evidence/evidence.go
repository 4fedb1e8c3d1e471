// Package evidence verifies evidence of any TEE outside of a trustee: for the
// command line. It finds out what a file holds, builds the verifier for it, and
// can hold the claims against reference values with the trustee's own policies.
package evidence

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/collateral"
)

// MaxFile is the greatest size of a file with evidence in bytes.
const MaxFile = 8 << 20

// Options say how strictly evidence is verified.
type Options struct {
	// Now is the time to verify at. Nil: time.Now.
	Now func() time.Time
	// AllowDebug and AllowMissingCollateral turn failures into warnings.
	AllowDebug, AllowMissingCollateral bool
	// Roots are files with the roots of software TEEs (of Arm CCA: the keys of
	// emulated platforms), whose evidence is simulated; Anchors files with keys to
	// trust where a vendor has no root.
	Roots, Anchors []string
	// Collateral finds what evidence does not bring. Nil: nothing.
	Collateral *collateral.Client
}

// InputError is about a file that cannot be read as what it should be.
type InputError struct{ Err error }

func (e *InputError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *InputError) Unwrap() error { return e.Err }

// IsInput reports whether the input, and not what it proves, is at fault.
func IsInput(err error) bool {
	_, ok := errors.AsType[*InputError](err)
	return ok
}

// Names lists the TEEs whose evidence can be verified.
func Names() []string {
	var out []string
	for _, k := range kinds() {
		out = append(out, string(k.name))
	}
	return out
}

// Verify verifies a file's content as evidence of one TEE. Evidence of several
// devices has several results. The error is *[tee.Error],
// *[tee.UnavailableError], or, where nothing was judged, *[InputError].
func Verify(ctx context.Context, name tee.Name, data []byte, want tee.Expected, o Options) ([]*tee.Result, error) {
	k, err := find(name)
	if err != nil {
		return nil, err
	}
	doc, err := k.load(data)
	if err != nil {
		return nil, &InputError{fmt.Errorf("%s evidence: %w", name, err)}
	}
	v, err := k.verifier(o)
	if err != nil {
		return nil, &InputError{err}
	}
	if multi, ok := v.(tee.MultiVerifier); ok {
		return multi.VerifyAll(ctx, doc, want)
	}
	result, err := v.Verify(ctx, doc, want)
	if err != nil {
		return nil, err
	}
	return []*tee.Result{result}, nil
}

// Inspect decodes a file's content without trust: as evidence of the TEE named,
// or, where only is empty, of whichever it is the form of.
func Inspect(data []byte, only tee.Name) (*tee.Inspection, error) {
	data, only = unwrap(data, only)
	var problems []error
	for _, k := range kinds() {
		if only != "" && only != k.name {
			continue
		}
		x, err := k.inspect(data)
		if err == nil {
			return x, nil
		}
		problems = append(problems, fmt.Errorf("%s: %w", k.name, err))
	}
	if only != "" {
		return nil, errors.Join(problems...)
	}
	return nil, fmt.Errorf("expected evidence of one of %v, got %d bytes that are none; name the TEE with --tee to see why", Names(), len(data))
}

// load finds the evidence JSON in a file.
func (k kind) load(data []byte) (json.RawMessage, error) {
	data, _ = unwrap(data, k.name)
	if isJSON(data) {
		return json.RawMessage(data), nil
	}
	return k.fromRaw(data)
}

func isJSON(data []byte) bool {
	trimmed := bytes.TrimSpace(data)
	return len(trimmed) > 0 && trimmed[0] == '{' && json.Valid(trimmed)
}

// unwrap takes evidence out of the messages that carry it: the "tee-evidence"
// of the KBS protocol, and a request to an attestation service. What is none of
// these, or could be read in two ways, comes back as it is.
func unwrap(data []byte, name tee.Name) ([]byte, tee.Name) {
	if !isJSON(data) {
		return data, name
	}
	var top map[string]json.RawMessage
	if strictjson.Decode(data, &top, messageLimits()) != nil {
		return data, name
	}
	if message, ok := top["tee-evidence"]; ok {
		top = nil
		if strictjson.Decode(message, &top, messageLimits()) != nil {
			return data, name
		}
	}
	if primary, ok := top["primary_evidence"]; ok {
		if _, more := top["additional_evidence"]; len(top) == 1 || len(top) == 2 && more {
			return primary, name
		}
		return data, name
	}
	var requests []struct {
		TEE      string `json:"tee"`
		Evidence string `json:"evidence"`
	}
	if json.Unmarshal(top["verification_requests"], &requests) != nil {
		return data, name
	}
	for _, r := range requests {
		if n, err := tee.ParseName(r.TEE); err == nil && (name == "" || name == n) {
			if b, err := decodeURL(r.Evidence); err == nil {
				return b, n
			}
		}
	}
	return data, name
}

func messageLimits() strictjson.Limits { return strictjson.Limits{Bytes: MaxFile, Depth: 64} }
