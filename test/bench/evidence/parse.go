package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/azure"
	"github.com/coffer-project/coffer/tee/cca"
	"github.com/coffer-project/coffer/tee/collateral"
	"github.com/coffer-project/coffer/tee/collateral/collateraltest"
	"github.com/coffer-project/coffer/tee/csv"
	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/nvidia"
	"github.com/coffer-project/coffer/tee/se"
	"github.com/coffer-project/coffer/tee/sgx"
	"github.com/coffer-project/coffer/tee/snp"
	"github.com/coffer-project/coffer/tee/snp/snpverify"
	"github.com/coffer-project/coffer/tee/tdx"
	"github.com/coffer-project/coffer/tee/tpm"
)

// parser is a decoder with an input.
type parser struct {
	name string
	data []byte
	run  func(data []byte) error
	// checks says that it does more than decode: it checks signatures, so that
	// the target does not hold.
	checks bool
}

// parse reports what decoders allocate, in sizes of their input.
func (b *bench) parse(ctx context.Context) error {
	list, err := parsers()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench-evidence-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	bundle, err := bundleParsers(ctx, dir)
	if err != nil {
		return err
	}
	for _, p := range append(list, bundle...) {
		const rounds = 50
		if err := p.run(p.data); err != nil { // also to warm up
			return fmt.Errorf("%s: %w", p.name, err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range rounds {
			if err := p.run(p.data); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
		runtime.ReadMemStats(&after)
		factor := float64(after.TotalAlloc-before.TotalAlloc) / rounds / float64(len(p.data))
		if label := fmt.Sprintf("input of %d bytes", len(p.data)); p.checks {
			b.report.Add("parse/"+p.name, factor, "×", label+", with checks of signatures")
		} else {
			b.report.AtMost("parse/"+p.name, factor, "×", maxAllocation, label)
		}
	}
	return nil
}

// of makes a parser of a function, whose result does not matter.
func of[In ~[]byte, Out any](name string, data []byte, f func(In) (Out, error)) parser {
	return parser{name: name, data: data, run: func(data []byte) error { _, err := f(In(data)); return err }}
}

func parsers() ([]parser, error) {
	f := &files{}
	snpEvidence, report, _ := snpSubject(f)
	quote := tdxQuote(f)
	quote5 := f.read(intel + "tdx_quote_v5.bin")
	log := f.read("tee/eventlog/testdata/ccel_for_quote_v4.bin")
	withLog, err := (&tdx.Evidence{Quote: f.read(intel + "tdx_quote_v4_debug.bin"), EventLog: log}).JSON()
	f.keep(err)
	sgxQuote := f.read(intel + "sgx_quote_v3_debug.bin")
	token := f.read("tee/cca/testdata/token.cbor")
	gpu, gpuEvidence := hopper(f)
	rest := others(f)
	secure, err := (&se.Evidence{
		Measurement: make([]byte, 64), AdditionalData: make([]byte, 64), UserData: make([]byte, 64), CUID: [16]byte{1},
		SealedMeasurementKey: make([]byte, 92), SealedNonce: make([]byte, 44),
	}).JSON()
	f.keep(err)
	roots, err := dcap.Roots()
	f.keep(err)
	tcbInfo := dcap.Signed{Body: f.read(intel + "tcb_info_tdx_50806f000000_2023-06.json"), IssuerChain: f.read(intel + "chain_signing_2018.pem")}
	if f.err != nil {
		return nil, f.err
	}
	evidence := map[string]json.RawMessage{}
	for _, s := range rest {
		evidence[s.name] = s.evidence
	}
	hcl := func(name string) []byte { return f.read("tee/azure/testdata/" + name) }
	ofKind := func(kind tee.Name) func(json.RawMessage) (*azure.Evidence, error) {
		return func(data json.RawMessage) (*azure.Evidence, error) { return azure.ParseEvidence(kind, data) }
	}
	events := func(kind eventlog.Kind) func([]byte) (*eventlog.Log, error) {
		return func(data []byte) (*eventlog.Log, error) { return eventlog.Parse(data, kind) }
	}
	out := []parser{
		of("snp-report", report, snp.DecodeReport), of("snp-evidence", snpEvidence.evidence, snp.ParseEvidence),
		of("tdx-quote-v4", quote, tdx.ParseQuote), of("tdx-quote-v5", quote5, tdx.ParseQuote), of("tdx-evidence", withLog, tdx.ParseEvidence),
		of("sgx-quote", sgxQuote, sgx.ParseQuote), of("sgx-evidence", evidence["sgx"], sgx.ParseEvidence),
		of("tpm-evidence", evidence["tpm"], tpm.ParseEvidence),
		of("az-snp-vtpm-evidence", evidence["az-snp-vtpm"], ofKind(tee.AzureSNPVTPM)), of("az-tdx-vtpm-evidence", evidence["az-tdx-vtpm"], ofKind(tee.AzureTDXVTPM)),
		of("azure-hcl-report", hcl("snp-hcl-report.bin"), azure.ParseReport),
		of("cca-token", token, cca.ParseToken), of("cca-evidence", evidence["cca"], cca.ParseEvidence),
		of("csv-evidence", evidence["csv"], csv.ParseEvidence), of("se-evidence", secure, se.ParseEvidence),
		of("nvidia-report", gpu.Report, nvidia.ParseReport), of("nvidia-evidence", gpuEvidence, nvidia.ParseEvidence),
		of("eventlog-ccel", log, events(eventlog.CCEL)), of("eventlog-tcg2", f.read("tee/eventlog/testdata/ubuntu-2404-amd-sevsnp.bin"), events(eventlog.TCG2)),
		{"tcb-info", slices.Concat(tcbInfo.Body, tcbInfo.IssuerChain), func(data []byte) error {
			body := len(tcbInfo.Body)
			_, err := dcap.ParseTCBInfo(dcap.Signed{Body: data[:body], IssuerChain: data[body:]}, roots)
			return err
		}, true},
	}
	return out, f.err
}

// bundleParsers read a bundle of AMD's and Intel's collateral for a fleet of a
// hundred chips from a file: as a verifier does, and without what verification
// of signatures allocates.
func bundleParsers(ctx context.Context, dir string) (out []parser, err error) {
	service, err := collateraltest.New(nil)
	if err != nil {
		return nil, err
	}
	chain, err := service.AMDChain(snp.Milan)
	if err != nil {
		return nil, err
	}
	checks, err := collateral.DefaultChecks(collateral.DevelopmentRoots{
		AMD: []snpverify.DevelopmentRoot{{Name: "benchmark", PEM: chain}}, Intel: []dcap.DevelopmentRoot{{Name: "benchmark", PEM: service.IntelRoot()}},
	})
	if err != nil {
		return nil, err
	}
	client, err := collateral.New(collateral.Options{Endpoints: service.Endpoints("https://collateral.test"), Checks: checks, HTTP: &http.Client{Transport: service.Transport()}})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	items, err := fleetItems()
	if err != nil {
		return nil, err
	}
	var entries []*collateral.Entry
	for _, i := range items {
		e, err := client.Get(ctx, i)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	var tar bytes.Buffer
	if err := collateral.WriteBundle(&tar, entries); err != nil {
		return nil, err
	}
	name := filepath.Join(dir, "bundle.tar")
	if err := os.WriteFile(name, tar.Bytes(), 0o600); err != nil {
		return nil, err
	}
	open := func(c collateral.Checks) func([]byte) error {
		return func([]byte) error {
			files, err := collateral.Open(name, c)
			if err == nil && len(files.Entries()) != len(items) {
				err = fmt.Errorf("expected %d items, got %d", len(items), len(files.Entries()))
			}
			return err
		}
	}
	return []parser{
		{"collateral-bundle", tar.Bytes(), open(credulous(checks)), false},
		{"collateral-bundle-checked", tar.Bytes(), open(checks), true},
	}, nil
}

// credulous takes AMD's certificates, which most of the bundle is, unseen.
func credulous(c collateral.Checks) collateral.Checks {
	c.VCEK = func([]byte, snp.Generation, []byte, snp.TCB) error { return nil }
	return c
}

func fleetItems() (items []collateral.Item, err error) {
	add := func(i collateral.Item, itemErr error) { items, err = append(items, i), errors.Join(err, itemErr) }
	for n := range 100 {
		add(collateral.VCEKItem(snp.Milan, append(make([]byte, 63), byte(n+1)), snp.TCB{Bootloader: 4, SNP: 24, Microcode: 219}))
	}
	add(collateral.AMDItem(collateral.AMDCRL, snp.Milan, snp.SignerVCEK))
	add(collateral.TCBInfoItem("tdx", [6]byte{0x50, 0x80, 0x6f}, collateral.Standard))
	add(collateral.QEIdentityItem("tdx", collateral.Standard))
	add(collateral.PCKCRLItem("platform"))
	add(collateral.RootCRLItem(), nil)
	return items, err
}
