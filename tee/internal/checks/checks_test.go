package checks_test

import (
	"errors"
	"testing"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/checks"
)

// No report data to compare with is none, however it is spelled: filled up with
// zeros, an empty digest would be what any evidence has that was made for nobody.
func TestReportData(t *testing.T) {
	t.Parallel()
	zeros, digest := make([]byte, 64), []byte{1}
	for name, tc := range map[string]struct {
		got               []byte
		want              tee.Expected
		accepted, warning bool
	}{
		"bound":              {tee.Fit(digest, 64), tee.Expected{ReportData: digest}, true, false},
		"bound to another":   {zeros, tee.Expected{ReportData: digest}, false, false},
		"nothing":            {zeros, tee.Expected{}, false, false},
		"any":                {zeros, tee.Expected{AnyReportData: true}, true, true},
		"any, but this":      {zeros, tee.Expected{ReportData: digest, AnyReportData: true}, false, false},
		"empty":              {zeros, tee.Expected{ReportData: []byte{}}, false, false},
		"empty, any allowed": {zeros, tee.Expected{ReportData: []byte{}, AnyReportData: true}, false, false},
		"cut off":            {tee.Fit(digest, 64)[:0], tee.Expected{ReportData: digest}, false, false},
	} {
		l := checks.New(tee.SNP, true)
		l.ReportData("snp", "report_data", tc.got, tc.want)
		if got := l.Err() == nil; got != tc.accepted || (len(l.Warnings()) > 0) != tc.warning {
			t.Errorf("%s: accepted is %t, warnings %v: %v", name, got, l.Warnings(), l.Err())
		}
	}
}

// What speaks against evidence outweighs what is lacking, and what nothing is
// known without is never a mere warning.
func TestErr(t *testing.T) {
	t.Parallel()
	f := tee.Failure{Check: "x.y"}
	l := checks.New(tee.SNP, true)
	l.Missing(f, errors.New("lost"))
	if l.Err() != nil || len(l.Warnings()) != 1 {
		t.Errorf("allowed to be missing: %v, %v", l.Err(), l.Warnings())
	}
	l.Essential(f, errors.New("lost"))
	if _, ok := errors.AsType[*tee.UnavailableError](l.Err()); !ok || l.Failed() {
		t.Errorf("essential: %v", l.Err())
	}
	l.Fail(f)
	if e, ok := errors.AsType[*tee.Error](l.Err()); !ok || len(e.Failures) != 2 {
		t.Errorf("failed: %v", l.Err())
	}
}
