package ear

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/kbs"
)

func TestTier(t *testing.T) {
	t.Parallel()
	for v, want := range map[int8]Status{
		0: None, 1: None, -1: None, 2: Affirming, 31: Affirming, -2: Affirming, -32: Affirming,
		32: Warning, 95: Warning, -33: Warning, -96: Warning, 96: Contraindicated, 127: Contraindicated, -97: Contraindicated, -128: Contraindicated,
	} {
		if got := Tier(v); got != want {
			t.Errorf("Tier(%d) = %s, want %s", v, got, want)
		}
	}
}

func TestVector(t *testing.T) {
	t.Parallel()
	v, err := ParseVector(map[string]json.Number{"hardware": "2", "executables": "33", "configuration": "3"})
	if err != nil || v.Hardware != 2 || v.Status() != Warning {
		t.Fatalf("%+v, %v, %s", v, err, v.Status())
	}
	if got := (Vector{Hardware: 97, Executables: 3}).Status(); got != Contraindicated {
		t.Error(got)
	}
	if got := (Vector{}).Status(); got != None {
		t.Error(got)
	}
	for _, bad := range []map[string]json.Number{{"hardwear": "2"}, {"hardware": "128"}, {"hardware": "1.5"}, {"hardware": "1e99"}} {
		if _, err := ParseVector(bad); err == nil {
			t.Errorf("%v: want an error", bad)
		}
	}
}

func TestSubmodJSON(t *testing.T) {
	t.Parallel()
	b, err := json.Marshal(Submod{Status: Affirming, Evidence: json.RawMessage(`{}`), Findings: []Finding{{Affects: "hardware", Reason: kbs.Reason{Rule: "r"}}},
		Extensions: map[string]json.RawMessage{"ear.x": json.RawMessage(`1`)}})
	if err != nil || !json.Valid(b) {
		t.Fatalf("%s, %v", b, err)
	}
	for _, want := range []string{`"ear.x":1`, `"ear.status":"affirming"`, `{"affects":"hardware","rule":"r"}`, `"instance-identity":0`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%s lacks %s", b, want)
		}
	}
	// Claims are read back without regard to case.
	if CheckExtension("EAR.Status") == nil || CheckExtension("ear.\u017ftatus") == nil {
		t.Error("CheckExtension: another spelling of a taken name")
	}
	if CheckExtension("ear.status") == nil || CheckExtension("") == nil || CheckExtension("ear.x") != nil {
		t.Error("CheckExtension")
	}
}
