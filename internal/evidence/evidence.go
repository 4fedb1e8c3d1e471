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
	"strings"
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
	// Beside are files and directories with what belongs to raw evidence and is
	// kept apart from it: a VLEK certificate, a GPU's certificate chain.
	Beside []string
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
		if k.verifier != nil {
			out = append(out, string(k.name))
		}
	}
	return out
}

// Inspectable lists the TEEs whose evidence can be inspected: those of [Names]
// and some more.
func Inspectable() []string {
	var out []string
	for _, k := range kinds() {
		out = append(out, string(k.name))
	}
	return out
}

// Verify verifies a file's content as evidence of one TEE. Evidence of several
// devices has several results. The error is *[tee.Error], also for evidence that
// is malformed, *[tee.UnavailableError], or, where nothing was judged because
// the content is nothing of this TEE, *[InputError].
func Verify(ctx context.Context, name tee.Name, data []byte, want tee.Expected, o Options) ([]*tee.Result, error) {
	k, err := find(name)
	if err != nil {
		return nil, err
	}
	if k.verifier == nil {
		return nil, &InputError{fmt.Errorf("evidence of %s cannot be verified here: %s", name, k.why)}
	}
	v, err := k.verifier(o)
	if err != nil {
		return nil, &InputError{err}
	}
	documents, err := k.load(data, o.Beside)
	if err != nil {
		return nil, err
	}
	// More than one where several files could belong to the evidence. What does
	// not belong to it does not verify.
	var first error
	for _, doc := range documents {
		results, err := verify(ctx, v, doc, want)
		if err == nil {
			warnOfKey(results[0])
			return results, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

func verify(ctx context.Context, v tee.Verifier, doc json.RawMessage, want tee.Expected) ([]*tee.Result, error) {
	if multi, ok := v.(tee.MultiVerifier); ok {
		return multi.VerifyAll(ctx, doc, want)
	}
	result, err := v.Verify(ctx, doc, want)
	if err != nil {
		return nil, err
	}
	return []*tee.Result{result}, nil
}

// warnOfKey says that a TPM's key is anybody's: a trustee has its policy judge
// that, here nobody does.
func warnOfKey(r *tee.Result) {
	if r.TEE == tee.TPM && r.Claims["ak_trusted"] != true {
		r.Warnings = append(r.Warnings, tee.Failure{
			Check: "tpm.ak", Field: "tpm_quote.ak_public", Expected: "a key that a trust anchor names or has certified", Got: fmt.Sprintf("sha256 %v", r.Claims["ak_sha256"]),
			Help: "anybody can make a key and sign what looks like a TPM's quote: name the machine's attestation key, or the authority that certified it (--trust-anchor)",
		})
	}
}

// Inspect decodes a file's content without trust: as evidence of the TEE named,
// or, where only is empty, of the one in whose form it has the least that is odd.
func Inspect(data []byte, only tee.Name) (*tee.Inspection, error) {
	data, only = unwrap(data, only)
	if only != "" {
		k, err := find(only)
		if err != nil {
			return nil, err
		}
		x, err := k.inspect(data)
		if err != nil {
			return nil, &InputError{fmt.Errorf("expected evidence of %s: %w", only, err)}
		}
		return x, nil
	}
	var best *tee.Inspection
	for _, k := range kinds() {
		if x, err := k.inspect(data); err == nil && (best == nil || len(x.Odd) < len(best.Odd)) {
			best = x
		}
	}
	if best == nil {
		return nil, &InputError{fmt.Errorf("expected evidence of one of %s, got %d bytes that are none; name the TEE with --tee to see why", strings.Join(Inspectable(), ", "), len(data))}
	}
	return best, nil
}

// load finds the evidence JSON in a file. It is more than one where several of
// the files beside it could belong to it.
func (k kind) load(data []byte, beside []string) ([]json.RawMessage, error) {
	data, _ = unwrap(data, k.name)
	if isJSON(data) {
		return []json.RawMessage{data}, nil
	}
	raws := [][]byte{data}
	if k.complete != nil && len(beside) > 0 {
		files, err := readBeside(beside)
		if err != nil {
			return nil, &InputError{err}
		}
		if whole := k.complete(data, files); len(whole) > 0 {
			raws = whole
		}
	}
	var out []json.RawMessage
	var malformed error
	for _, raw := range raws {
		doc, err := k.fromRaw(raw)
		if err != nil {
			malformed = err
			continue
		}
		out = append(out, doc)
	}
	if len(out) > 0 {
		return out, nil
	}
	if _, err := k.inspect(data); err != nil {
		return nil, &InputError{fmt.Errorf("expected evidence of %s, raw or as JSON: %w", k.name, malformed)}
	}
	return nil, &tee.Error{TEE: k.name, Failures: []tee.Failure{{
		Check: string(k.name) + ".format", Field: "evidence", Expected: "evidence of " + string(k.name), Got: malformed.Error(),
		Help: "the evidence was cut, altered, or is of a form that cannot be verified: `coffer evidence inspect` says what is in it",
	}}}
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
