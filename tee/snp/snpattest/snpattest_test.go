package snpattest

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/teetest/tsmtest"
	"github.com/coffer-project/coffer/tee/snp"
)

// kernel is the report interface of an SNP guest; aux is there, if only empty.
func kernel(outBlob func([]byte) ([]byte, error), aux []byte) tsmtest.Kernel {
	return tsmtest.Kernel{Provider: "sev_guest\n", OutBlob: outBlob, AuxBlob: aux, Privilege: "0"}
}

// processor answers with a report over what it is asked for.
func processor(in []byte) ([]byte, error) {
	r := snp.Report{Version: 2, Policy: snp.PolicyReserved1, ReportData: [64]byte(in), HostData: [32]byte{7}}
	return r.Bytes()
}

func TestEvidence(t *testing.T) {
	t.Parallel()
	certs := []snp.Certificate{{Type: snp.CertVCEK, Data: []byte("chip")}}
	table, err := snp.EncodeCertTable(certs)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		aux  []byte
		want []snp.Certificate
	}{
		"certificates":   {table, certs},
		"none":           {make([]byte, 4096), nil},
		"a broken table": {table[:30], nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := NewWithClient(kernel(processor, tc.aux).Client())
			if a.TEE() != tee.SNP {
				t.Errorf("TEE: got %s", a.TEE())
			}
			raw, err := a.Evidence(t.Context(), []byte("data"))
			if err != nil {
				t.Fatal(err)
			}
			e, err := snp.ParseEvidence(raw)
			if err != nil {
				t.Fatal(err)
			}
			if want := [64]byte(tee.Fit([]byte("data"), 64)); e.AttestationReport.ReportData != want {
				t.Errorf("report data: got %x", e.AttestationReport.ReportData)
			}
			if diff := cmp.Diff(tc.want, e.CertChain); diff != "" {
				t.Error(diff)
			}
			if got, err := a.InitData(t.Context()); err != nil || !bytes.Equal(got, append([]byte{7}, make([]byte, 31)...)) {
				t.Errorf("initdata: got %x, %v", got, err)
			}
		})
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	fixed := func(b []byte) func([]byte) ([]byte, error) {
		return func([]byte) ([]byte, error) { return b, nil }
	}
	another, err := processor(make([]byte, 64))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		kernel tsmtest.Kernel
		data   []byte
		want   string
	}{
		"another TEE":      {tsmtest.Kernel{Provider: "tdx_guest\n", OutBlob: processor, AuxBlob: []byte{0}, Privilege: "0"}, nil, "tdx_guest"},
		"firmware error":   {kernel(func([]byte) ([]byte, error) { return nil, errors.New("throttled") }, []byte{0}), nil, "throttled"},
		"no report":        {kernel(fixed(make([]byte, 100)), []byte{0}), nil, "1184"},
		"another's report": {kernel(fixed(another), []byte{0}), []byte("data"), "report_data"},
		"too much data":    {kernel(processor, []byte{0}), make([]byte, 65), "64 bytes"},
	} {
		if raw, err := NewWithClient(tc.kernel.Client()).Evidence(t.Context(), tc.data); err == nil || raw != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %s, %v; want an error with %q", name, raw, err, tc.want)
		}
	}
}

func TestContextEnds(t *testing.T) {
	t.Parallel()
	tsmtest.ContextEnds(t, kernel(processor, []byte{0}), NewWithClient)
}
