package collateral_test

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/collateral"
	"github.com/coffer-project/coffer/tee/collateral/collateraltest"
	"github.com/coffer-project/coffer/tee/sgx"
	"github.com/coffer-project/coffer/tee/snp"
	"github.com/coffer-project/coffer/tee/tdx"
	"github.com/coffer-project/coffer/tee/tdx/tdxverify"
)

func vector(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestNeeds(t *testing.T) {
	inJSON := func(data json.RawMessage, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	report, vlek, quote, enclave := vector(t, "evidence/test-report.bin"), vector(t, "evidence/test-vlek-report.bin"), vector(t, "evidence/quote_v4.dat"), vector(t, "evidence/occlum_quote_v3.dat")
	withCertificate, err := snp.NewEvidence(report, []snp.Certificate{{Type: snp.CertVCEK, Data: vector(t, "pcs/test-vcek.der")}})
	if err != nil {
		t.Fatal(err)
	}
	milan := "amd-vcek:Milan/" + vectorChip + "/bl03_tee00_snp08_ucode115 amd-crl:Milan/vcek"
	tdxItems := "intel-tcb-info:tdx/50806f000000/early intel-qe-identity:tdx/early intel-pck-crl:platform intel-root-crl:sgx"
	for _, tc := range []struct {
		tee  tee.Name
		data []byte
		g    snp.Generation
		want string
	}{
		{tee.SNP, report, snp.Milan, milan},
		{tee.SNP, inJSON(snp.FromRaw(report)), snp.Milan, milan},
		{tee.SNP, inJSON(withCertificate.JSON()), "", milan},
		{tee.SNP, vlek, "", "amd-crl:Milan/vlek"},
		{tee.TDX, quote, "", tdxItems},
		{tee.TDX, append(inJSON(tdx.FromRaw(quote)), '\n'), "", tdxItems},
		{tee.SGX, enclave, "", "intel-tcb-info:sgx/00606a000000/early intel-qe-identity:sgx/early intel-pck-crl:platform intel-root-crl:sgx"},
		{tee.SGX, inJSON(sgx.FromRaw(enclave)), "", "intel-tcb-info:sgx/00606a000000/early intel-qe-identity:sgx/early intel-pck-crl:platform intel-root-crl:sgx"},
		{tee.AzureSNPVTPM, vector(t, "evidence/az-snp-v2.json"), "", "amd-vcek:Milan/2e0e62a0e6f39bc491381b091ff79cfe03ad0b42a6bbe764fd408923963d9097440365dbf8c3412c8da4969024d81b19c1d4f12197f460bf2b5283a25e32f684/bl04_tee00_snp24_ucode219 amd-crl:Milan/vcek"},
		{tee.AzureTDXVTPM, vector(t, "evidence/az-tdx-v0.json"), "", "intel-tcb-info:tdx/00806f050000/early intel-qe-identity:tdx/early intel-pck-crl:platform intel-root-crl:sgx"},
		{tee.CSV, vector(t, "evidence/csv-evidence.json"), "", "hygon-hsk-cek:KPA64911240507"},
	} {
		items, err := collateral.Needs(tc.tee, tc.data, tc.g, collateral.Early)
		if err != nil {
			t.Errorf("%s: %v", tc.tee, err)
			continue
		}
		got := make([]string, len(items))
		for i, item := range items {
			got[i] = item.String()
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%s: got %s\nexpected %s", tc.tee, got, tc.want)
		}
	}
	if _, err := collateral.Needs(tee.SNP, report, "", collateral.Standard); !errors.Is(err, collateral.ErrGeneration) {
		t.Errorf("got %v", err)
	}
	for _, name := range []tee.Name{tee.SNP, tee.TDX, tee.SGX, tee.CSV, tee.AzureSNPVTPM, tee.AzureTDXVTPM, tee.Sample} {
		for _, data := range [][]byte{nil, []byte("{}"), []byte("x"), report[:100], quote[:700]} {
			if items, err := collateral.Needs(name, data, snp.Milan, collateral.Standard); err == nil {
				t.Errorf("%s: %d bytes are taken for evidence: %v", name, len(data), items)
			}
		}
	}
}

// A real quote is verified with real documents out of a directory, and not with
// the same documents later.
func TestVerifierUsesIt(t *testing.T) {
	files := open(t, "testdata/2023", defaultChecks(t))
	evidence, err := tdx.FromRaw(vector(t, "evidence/quote_v4.dat"))
	if err != nil {
		t.Fatal(err)
	}
	verify := func(year int) (*tee.Result, error) {
		now := func() time.Time { return time.Date(year, 7, 1, 0, 0, 0, 0, time.UTC) }
		c, err := collateral.New(collateral.Options{Offline: true, Now: now, Stores: []collateral.Source{files}, Checks: defaultChecks(t)})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		v, err := tdxverify.New(tdxverify.Options{Now: now, Collateral: c.Intel(), AllowDebug: true})
		if err != nil {
			t.Fatal(err)
		}
		return v.Verify(t.Context(), evidence, tee.Expected{AnyReportData: true})
	}
	result, err := verify(2023)
	if err != nil {
		t.Fatal(err)
	}
	if result.Claims["tcb_status"] == nil || result.Claims["collateral_expiration_status"] != "0" {
		t.Errorf("claims %v, warnings %v", result.Claims, result.Warnings)
	}
	if _, err := verify(2024); err == nil {
		t.Error("documents of last year count")
	}
}

// Who fetches beforehand waits for what is due, and learns of failures.
func TestFetch(t *testing.T) {
	prepare(t)
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		c := newClient(t, s, nil)
		fetch := func(wantFresh, wantErr bool) {
			t.Helper()
			e, fresh, err := c.Fetch(t.Context(), collateral.RootCRLItem())
			if fresh != wantFresh || (err != nil) != wantErr || err == nil && e == nil {
				t.Errorf("fresh %v, %v", fresh, err)
			}
		}
		fetch(true, false)
		fetch(false, false)
		pass(25 * time.Hour)
		fetch(true, false)
		pass(25 * time.Hour)
		s.Set(collateraltest.Behaviour{Lie: collateraltest.Broken})
		fetch(false, true)
	})
}
