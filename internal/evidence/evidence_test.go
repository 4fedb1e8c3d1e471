package evidence_test

import (
	"encoding/base64"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/evidence"
	"github.com/coffer-project/coffer/tee"
)

func read(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

const (
	good = `{"svn":"1","report_data":"AAE="}`
	bad  = `{"svn":"2","report_data":"AAE="}`
)

// Evidence is found in the messages that carry it, and only where there is one way
// to read them: of two pieces, none is verified in the name of the other.
func TestMessages(t *testing.T) {
	t.Parallel()
	b64 := base64.RawURLEncoding.EncodeToString([]byte(good))
	for message, want := range map[string]bool{
		good:                                true,
		bad:                                 false,
		`{"primary_evidence":` + good + `}`: true,
		`{"primary_evidence":` + good + `,"additional_evidence":""}`:                                         true,
		`{"init-data":null,"runtime-data":{},"tee-evidence":{"primary_evidence":` + good + `}}`:              true,
		`{"verification_requests":[{"tee":"sample","evidence":"` + b64 + `"}]}`:                              true,
		`{"primary_evidence":` + bad + `,"primary_evidence":` + good + `}`:                                   false,
		`{"tee-evidence":{"primary_evidence":` + bad + `},"tee-evidence":{"primary_evidence":` + good + `}}`: false,
		`{"tee-evidence":{"primary_evidence":` + bad + `,"primary_evidence":` + good + `}}`:                  false,
		`{"svn":"2","report_data":"AAE=","primary_evidence":` + good + `}`:                                   false,
		`{"Primary_Evidence":` + good + `}`:                                                                  false,
		`{"primary_evidence":` + good + `,"x":{"a":1,"a":2}}`:                                                false,
		`{"verification_requests":[{"tee":"sample","evidence":"e30","evidence":"` + b64 + `"}]}`:             false,
		`{"primary_evidence":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`:                   false,
	} {
		_, err := evidence.Verify(t.Context(), tee.Sample, []byte(message), tee.Expected{AnyReportData: true}, evidence.Options{})
		if got := err == nil; got != want {
			t.Errorf("%s: accepted is %t: %v", message, got, err)
		}
	}
}

// Keys of emulated platforms are told from those of machines.
func TestDevelopmentAnchors(t *testing.T) {
	t.Parallel()
	token, anchors := read(t, "../../tee/cca/testdata/token.cbor"), "../../tee/cca/testdata/tastore.json"
	for simulated, o := range map[bool]evidence.Options{false: {Anchors: []string{anchors}}, true: {Roots: []string{anchors}}} {
		r, err := evidence.Verify(t.Context(), tee.CCA, token, tee.Expected{AnyReportData: true}, o)
		if err != nil {
			t.Fatal(err)
		}
		if r[0].Simulated != simulated || fmt.Sprint(r[0].Claims["simulated"]) != fmt.Sprint(simulated) {
			t.Errorf("expected simulated %t, got %t", simulated, r[0].Simulated)
		}
	}
	if _, err := evidence.Verify(t.Context(), tee.CCA, token, tee.Expected{AnyReportData: true}, evidence.Options{Roots: []string{anchors}, Anchors: []string{anchors}}); err == nil {
		t.Error("one platform is a machine and an emulation")
	}
}
