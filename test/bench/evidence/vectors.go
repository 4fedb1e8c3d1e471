package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/azure/azureverify"
	"github.com/coffer-project/coffer/tee/cca"
	"github.com/coffer-project/coffer/tee/cca/ccaverify"
	"github.com/coffer-project/coffer/tee/csv"
	"github.com/coffer-project/coffer/tee/csv/csvverify"
	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/nvidia"
	"github.com/coffer-project/coffer/tee/nvidia/nvidiaverify"
	"github.com/coffer-project/coffer/tee/sgx"
	"github.com/coffer-project/coffer/tee/sgx/sgxverify"
	"github.com/coffer-project/coffer/tee/snp"
	"github.com/coffer-project/coffer/tee/snp/snpverify"
	"github.com/coffer-project/coffer/tee/tdx"
	"github.com/coffer-project/coffer/tee/tdx/tdxverify"
	"github.com/coffer-project/coffer/tee/tpm/tpmverify"
)

// vectors are the published files that tests use; each directory has an ORIGIN.
const (
	snpVectors = "tee/snp/testdata/"
	intel      = "tee/dcap/dcaptest/testdata/"
)

// subject is evidence with a verifier that takes it for genuine.
type subject struct {
	name     string
	evidence json.RawMessage
	want     tee.Expected
	verifier func() (tee.Verifier, error)
}

// once verifies with v.
func (s *subject) once(ctx context.Context, v tee.Verifier) error {
	_, err := v.Verify(ctx, s.evidence, s.want)
	return err
}

// cold verifies with a verifier that knows nothing.
func (s *subject) cold(ctx context.Context) error {
	v, err := s.verifier()
	if err != nil {
		return err
	}
	return s.once(ctx, v)
}

// warm returns a verification by one verifier that has seen the machine.
func (s *subject) warm(ctx context.Context) (func(context.Context) error, error) {
	v, err := s.verifier()
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error { return s.once(ctx, v) }, s.once(ctx, v)
}

// files reads vectors; the first error stays.
type files struct{ err error }

func (f *files) read(name string) []byte {
	data, err := os.ReadFile(name)
	f.keep(err)
	return data
}

func (f *files) unhex(text string) []byte {
	data, err := hex.DecodeString(strings.TrimSpace(text))
	f.keep(err)
	return data
}

func (f *files) keep(err error) {
	if f.err == nil {
		f.err = err
	}
}

func at(year int, month time.Month) func() time.Time {
	return func() time.Time { return time.Date(year, month, 1, 1, 0, 0, 0, time.UTC) }
}

func snpSubject(f *files) (s *subject, report, vcek []byte) {
	report, vcek = f.read(snpVectors+"test-report.bin"), f.read(snpVectors+"test-vcek.der")
	e, err := snp.NewEvidence(report, []snp.Certificate{{Type: snp.CertVCEK, Data: vcek}})
	f.keep(err)
	if f.err != nil {
		return nil, nil, nil
	}
	data, err := e.JSON()
	f.keep(err)
	return &subject{"snp", data, tee.Expected{ReportData: report[0x50:0x90]}, func() (tee.Verifier, error) {
		return snpverify.New(snpverify.Options{Now: at(2024, time.June)})
	}}, report, vcek
}

// tdxQuote is the quote of go-tdx-guest's testing/testdata without the text that
// follows it there.
func tdxQuote(f *files) []byte {
	quote, _, found := bytes.Cut(f.read(intel+"tdx_quote_v4_spr_with_text_behind.bin"), []byte("\nextra bytes"))
	if !found {
		f.keep(fmt.Errorf("the quote is another one"))
	}
	return quote
}

func tdxSubject(f *files, quote []byte, c dcap.Collateral) *subject {
	data, err := (&tdx.Evidence{Quote: quote}).JSON()
	f.keep(err)
	return &subject{"tdx", data, tee.Expected{AnyReportData: true}, func() (tee.Verifier, error) {
		return tdxverify.New(tdxverify.Options{Now: at(2023, time.July), AllowDebug: true, AllowMissingCollateral: c == nil, Collateral: c})
	}}
}

// intel2023 is Intel's collateral of June 2023.
func intel2023(f *files) *dcap.Static {
	signing, platform := f.read(intel+"chain_signing_2018.pem"), f.read(intel+"chain_platform_ca.pem")
	return &dcap.Static{
		TCBInfos: map[dcap.Family]dcap.Signed{
			{Kind: dcap.TDX, FMSPC: [6]byte{0x50, 0x80, 0x6f}}: {Body: f.read(intel + "tcb_info_tdx_50806f000000_2023-06.json"), IssuerChain: signing},
		},
		QEIdentities: map[dcap.Kind]dcap.Signed{dcap.TDX: {Body: f.read(intel + "qe_identity_tdx_2023-06.json"), IssuerChain: signing}},
		PCKCRLs:      map[dcap.CA]dcap.Signed{dcap.PlatformCA: {Body: f.read(intel + "pck_crl_platform_2023-06.der"), IssuerChain: platform}},
		Root:         f.read(intel + "root_crl_2023.der"),
	}
}

// others are subjects of the environments that have no peer here.
func others(f *files) []*subject {
	any := tee.Expected{AnyReportData: true}
	sgxEvidence, err := sgx.FromRaw(f.read(intel + "sgx_quote_v3_debug.bin"))
	f.keep(err)
	ccaEvidence, err := cca.FromRaw(f.read("tee/cca/testdata/token.cbor"))
	f.keep(err)
	csvEvidence, err := csv.FromRaw(f.read("tee/csv/testdata/report.bin"))
	f.keep(err)
	gpu, gpuEvidence := hopper(f)
	anchors := f.read("tee/cca/testdata/tastore.json")
	hsk := hygon(f.read("tee/csv/testdata/hsk_cek.cert"))
	return []*subject{
		{"sgx", sgxEvidence, any, func() (tee.Verifier, error) {
			return sgxverify.New(sgxverify.Options{Now: at(2024, time.June), AllowDebug: true, AllowMissingCollateral: true})
		}},
		{"tpm", f.read("tee/tpm/testdata/evidence.json"), any, func() (tee.Verifier, error) { return tpmverify.New(tpmverify.Options{}) }},
		{"az-snp-vtpm", f.read("tee/azure/testdata/snp-v2.json"), any, func() (tee.Verifier, error) {
			v, err := snpverify.New(snpverify.Options{Now: at(2025, time.November)})
			return azureverify.NewSNP(v, azureverify.Options{}), err
		}},
		{"az-tdx-vtpm", f.read("tee/azure/testdata/tdx-v1.json"), any, func() (tee.Verifier, error) {
			v, err := tdxverify.New(tdxverify.Options{Now: at(2025, time.November), AllowMissingCollateral: true})
			return azureverify.NewTDX(v, azureverify.Options{AllowMissingCollateral: true}), err
		}},
		{"cca", ccaEvidence, any, func() (tee.Verifier, error) {
			trusted, err := ccaverify.ParseTrustAnchors(anchors, true)
			if err != nil {
				return nil, err
			}
			return ccaverify.New(ccaverify.Options{TrustAnchors: trusted})
		}},
		{"csv", csvEvidence, any, func() (tee.Verifier, error) {
			return csvverify.New(csvverify.Options{AllowDebug: true, Collateral: hsk})
		}},
		{"nvidia", gpuEvidence, tee.Expected{ReportData: gpu.Report[4:36]}, func() (tee.Verifier, error) {
			return nvidiaverify.New(nvidiaverify.Options{Now: at(2026, time.January)})
		}},
	}
}

// hopper is published evidence of an H100.
func hopper(f *files) (nvidia.Device, json.RawMessage) {
	const dir = "tee/nvidia/testdata/"
	d := nvidia.Device{
		Arch: nvidia.Hopper, UUID: "GPU-1", Report: f.unhex(string(f.read(dir + "hopperAttestationReport.txt"))), Chain: f.read(dir + "hopper_cert_chain_case1.txt"),
	}
	if f.err != nil {
		return nvidia.Device{Report: make([]byte, 36)}, nil
	}
	data, err := (&nvidia.Evidence{Devices: []nvidia.Device{d}}).JSON()
	f.keep(err)
	return d, data
}

// hygon gives the one pair of certificates that is published.
type hygon []byte

// HSKCEK implements [csvverify.Collateral].
func (h hygon) HSKCEK(context.Context, string) ([]byte, error) { return h, nil }
