// Package checks collects what a verifier finds out about one piece of
// evidence, so that a refusal names everything that is wrong and not only the
// first thing.
package checks

import (
	"crypto/subtle"
	"encoding/hex"
	"errors"

	"github.com/coffer-project/coffer/tee"
)

// List is the outcome of the checks so far. It is used by one goroutine.
type List struct {
	name         tee.Name
	allowMissing bool
	failures     []tee.Failure
	missing      []tee.Failure
	causes       []error
	warnings     []tee.Failure
}

// New returns an empty list. allowMissing turns missing collateral into
// warnings.
func New(name tee.Name, allowMissing bool) *List {
	return &List{name: name, allowMissing: allowMissing}
}

// Fail records checks that did not pass.
func (l *List) Fail(f ...tee.Failure) { l.failures = append(l.failures, f...) }

// FailUnless records a check that did not pass: a warning where it is allowed.
func (l *List) FailUnless(allowed bool, f tee.Failure) {
	if allowed {
		l.warnings = append(l.warnings, f)
		return
	}
	l.failures = append(l.failures, f)
}

// Warn records what is tolerated.
func (l *List) Warn(f ...tee.Failure) { l.warnings = append(l.warnings, f...) }

// Missing records a check that could not be made for want of collateral. cause
// is normally a *[tee.CollateralError], which says what f leaves out.
func (l *List) Missing(f tee.Failure, cause error) { l.lacking(f, cause, l.allowMissing) }

// Essential is Missing for what nothing is known without, such as the
// certificate of the key that signed: it is never tolerated.
func (l *List) Essential(f tee.Failure, cause error) { l.lacking(f, cause, false) }

func (l *List) lacking(f tee.Failure, cause error, allowed bool) {
	if c, ok := errors.AsType[*tee.CollateralError](cause); ok {
		if f.Expected == "" {
			f.Expected = c.Item
		}
		if f.Got == "" {
			f.Got = c.Error()
		}
		if f.Help == "" {
			f.Help = c.Help()
		}
	} else if f.Got == "" && cause != nil {
		f.Got = cause.Error()
	}
	if allowed {
		l.warnings = append(l.warnings, f)
		return
	}
	l.missing = append(l.missing, f)
	if cause != nil {
		l.causes = append(l.causes, cause)
	}
}

// ReportData compares the evidence's field with what is expected. The check is
// named "<tee>.report_data" with the prefix given.
func (l *List) ReportData(prefix, field string, got []byte, want tee.Expected) {
	if len(want.ReportData) == 0 { // padded with zeros, no bytes would be that many zeros
		f := tee.Failure{Check: prefix + ".report_data", Field: field, Expected: "report data to compare with", Got: "none given", Help: "without it the evidence may be anybody's and of any age: give the digest that the evidence was made for"}
		l.FailUnless(want.AnyReportData && want.ReportData == nil, f)
		return
	}
	if data := tee.Fit(want.ReportData, len(got)); len(got) == 0 || subtle.ConstantTimeCompare(data, got) != 1 {
		l.Fail(tee.Failure{
			Check: prefix + ".report_data", Field: field, Expected: hex.EncodeToString(data), Got: hex.EncodeToString(got),
			Help: "the evidence was made for another handshake or another key",
		})
	}
}

// InitData compares the field that holds the initdata digest. check is the
// whole name, for example "snp.host_data".
func (l *List) InitData(check, field string, got []byte, want tee.Expected) {
	if want.InitData == nil {
		return
	}
	if data := tee.Fit(want.InitData, len(got)); subtle.ConstantTimeCompare(data, got) != 1 {
		l.Fail(tee.Failure{
			Check: check, Field: field, Expected: hex.EncodeToString(data), Got: hex.EncodeToString(got),
			Help: "the guest was launched with other initdata than it presents",
		})
	}
}

// Failed reports whether a check has not passed so far, missing collateral
// aside.
func (l *List) Failed() bool { return len(l.failures) > 0 }

// Warnings are what is tolerated.
func (l *List) Warnings() []tee.Failure { return l.warnings }

// Err is nil when everything passed, *[tee.Error] when something did not, and
// *[tee.UnavailableError] when only collateral is missing.
func (l *List) Err() error {
	switch {
	case len(l.failures) > 0:
		return &tee.Error{TEE: l.name, Failures: append(l.failures, l.missing...), Missing: errors.Join(l.causes...)}
	case len(l.missing) > 0:
		return &tee.UnavailableError{TEE: l.name, Failures: l.missing, Err: errors.Join(l.causes...)}
	}
	return nil
}

// Refuse is the error of a single failure that ends verification.
func Refuse(name tee.Name, f tee.Failure) error {
	return &tee.Error{TEE: name, Failures: []tee.Failure{f}}
}
