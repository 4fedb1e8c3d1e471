package verifiers

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/collateral"
)

func names(v map[tee.Name]tee.Verifier) string {
	var out []string
	for _, n := range slices.Sorted(maps.Keys(v)) {
		if v[n].TEE() != n {
			out = append(out, "?")
		}
		out = append(out, string(n))
	}
	return strings.Join(out, " ")
}

// offline is a source that has nothing.
func offline(t *testing.T) *collateral.Client {
	t.Helper()
	c, err := OpenCollateral(config.Collateral{Offline: true}, t.TempDir(), time.Now, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestNew(t *testing.T) {
	t.Parallel()
	c := config.Default().TEE
	v, err := New(Options{TEE: c, Collateral: offline(t), Now: time.Now})
	if err != nil || names(v) != "az-snp-vtpm az-tdx-vtpm csv nvidia sgx snp tdx" {
		t.Fatalf("%s, %v", names(v), err)
	}
	c.Sample.Enabled, c.TPM.Enabled, c.SGX.Enabled = true, true, false
	c.SNP.MinimumTCB = map[string]config.TCB{"Milan": {Levels: config.Levels{SNP: 8}}, "Turin": {Levels: config.Levels{FMC: 1}}}
	c.SNP.IDKeyDigests, c.SNP.ForbidSMT = []string{strings.Repeat("ab", 48)}, true
	if v, err = New(Options{TEE: c, Collateral: offline(t), Now: time.Now}); err != nil || names(v) != "az-snp-vtpm az-tdx-vtpm csv nvidia sample sampledevice snp tdx tpm" {
		t.Errorf("%s, %v", names(v), err)
	}
}

// Every problem is reported, with the key it is about.
func TestNewRefuses(t *testing.T) {
	t.Parallel()
	bad := filepath.Join(t.TempDir(), "bad.pem")
	if err := os.WriteFile(bad, []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{bad, bad + ".missing"} {
		c := config.Default().TEE
		c.SNP.DevelopmentRoots, c.TDX.DevelopmentRoots, c.SGX.DevelopmentRoots, c.NVIDIA.DevelopmentRoots = []string{file}, []string{file}, []string{file}, []string{file}
		c.TPM = config.TPM{Enabled: true, TrustedAKs: []string{file}}
		c.CCA = config.CCA{Enabled: true, TrustAnchors: []string{file}, DevelopmentAnchors: []string{file}}
		err := Check(c, config.Default().Collateral, time.Now)
		if err == nil {
			t.Fatalf("%s: accepted", file)
		}
		for _, key := range []string{"tee.snp", "tee.tdx", "tee.sgx", "tee.nvidia", "tee.tpm: trusted_aks", "tee.cca: trust_anchors", "development_anchors"} {
			if !strings.Contains(err.Error(), key) {
				t.Errorf("%s: %v\nlacks %s", file, err, key)
			}
		}
	}
}

// What a configuration says of patch levels is what is demanded.
func TestMinimumTCB(t *testing.T) {
	t.Parallel()
	c, err := config.Parse([]byte("[tee.snp.minimum_tcb]\nGenoa = { bootloader = 4, snp = 14, launch = { snp = 10 } }\nTurin = { fmc = 1, reported = { fmc = 2, snp = 3 } }\n"))
	if err != nil {
		t.Fatal(err)
	}
	genoa := minimumTCB("Genoa", c.TEE.SNP.MinimumTCB["Genoa"])
	if genoa.Reported.SNP != 14 || genoa.Committed.Bootloader != 4 || genoa.Launch.SNP != 10 || genoa.Launch.Bootloader != 0 || genoa.Reported.FMC != nil {
		t.Errorf("Genoa: %+v", genoa)
	}
	turin := minimumTCB("Turin", c.TEE.SNP.MinimumTCB["Turin"])
	if *turin.Reported.FMC != 2 || turin.Reported.SNP != 3 || *turin.Launch.FMC != 1 {
		t.Errorf("Turin: %+v", turin)
	}
}

// A quote whose platform nobody can judge is not refused as forged: collateral
// is missing, and whoever reads the answer is told which.
func TestMissingCollateral(t *testing.T) {
	t.Parallel()
	quote, err := os.ReadFile("testdata/tdx_evidence.json")
	if err != nil {
		t.Fatal(err)
	}
	c := config.Default()
	c.Collateral.Offline = true
	var events []collateral.Event
	client, err := OpenCollateral(c.Collateral, t.TempDir(), time.Now, slog.New(slog.DiscardHandler), func(e collateral.Event) { events = append(events, e) })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	c.TEE.TDX.AllowDebug = true
	c.TEE.TDX.AllowStaleCollateral = true // which is about documents that there are
	at := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	v, err := New(Options{TEE: c.TEE, Collateral: client, Now: func() time.Time { return at }})
	if err != nil {
		t.Fatal(err)
	}
	_, err = v[tee.TDX].Verify(context.Background(), json.RawMessage(quote), tee.Expected{AnyReportData: true})
	missing, ok := errors.AsType[*tee.UnavailableError](err)
	if !ok {
		t.Fatalf("expected missing collateral, got %v", err)
	}
	if !strings.Contains(missing.Error(), "TCB info") || missing.Failures[0].Help == "" {
		t.Errorf("%v", missing)
	}
	if len(events) == 0 {
		t.Error("nothing was counted")
	}
}

// Nothing in a configuration makes genuine what could not be checked: a report of
// Hygon CSV without its chip's certificates can be anybody's.
func TestNoConfigurationToleratesMissing(t *testing.T) {
	t.Parallel()
	evidence, err := os.ReadFile("../../../tee/csv/testdata/evidence.json")
	if err != nil {
		t.Fatal(err)
	}
	c := config.Default().TEE
	c.CSV.AllowDebug, c.SNP.AllowDebug, c.TDX.AllowStaleCollateral, c.SGX.AllowStaleCollateral = true, true, true, true
	v, err := New(Options{TEE: c, Collateral: offline(t), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	r, err := v[tee.CSV].Verify(t.Context(), evidence, tee.Expected{AnyReportData: true})
	if _, ok := errors.AsType[*tee.UnavailableError](err); !ok {
		t.Errorf("expected missing collateral, got %+v, %v", r, err)
	}
}

func TestStores(t *testing.T) {
	t.Parallel()
	c := config.Default().Collateral
	c.Stores = []string{filepath.Join(t.TempDir(), "missing")}
	if err := Check(config.Default().TEE, c, time.Now); err == nil {
		t.Error("a store that is not there was taken")
	}
	if _, err := OpenCollateral(c, t.TempDir(), time.Now, slog.New(slog.DiscardHandler), nil); err == nil {
		t.Error("a store that is not there was opened")
	}
}
