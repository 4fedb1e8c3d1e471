// Package dcaptest has what the tests and benchmarks of SGX and TDX share: real
// quotes with Intel's collateral of their day, and a made-up world of
// platforms for what those do not show.
package dcaptest

import (
	"embed"
	"testing"
	"time"

	"github.com/coffer-project/coffer/tee/dcap"
)

//go:embed testdata
var files embed.FS

// File is a file of testdata/; see ORIGIN there.
func File(t testing.TB, name string) []byte {
	t.Helper()
	data, err := files.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// The platform families of the real quotes.
var (
	family50806F = [6]byte{0x50, 0x80, 0x6f}
	family90C06F = [6]byte{0x90, 0xc0, 0x6f}
	family00A06D = [6]byte{0x00, 0xa0, 0x6d, 0x08}
)

// At2023 is a time at which all of [Intel2023] is current.
func At2023() time.Time { return time.Date(2023, 7, 1, 1, 0, 0, 0, time.UTC) }

// Intel2023 is Intel's collateral of June 2023 for the TDX family 50806F000000.
func Intel2023(t testing.TB) *dcap.Static {
	signing, platform := File(t, "chain_signing_2018.pem"), File(t, "chain_platform_ca.pem")
	return &dcap.Static{
		TCBInfos:     map[dcap.Family]dcap.Signed{{Kind: dcap.TDX, FMSPC: family50806F}: {Body: File(t, "tcb_info_tdx_50806f000000_2023-06.json"), IssuerChain: signing}},
		QEIdentities: map[dcap.Kind]dcap.Signed{dcap.TDX: {Body: File(t, "qe_identity_tdx_2023-06.json"), IssuerChain: signing}},
		PCKCRLs:      map[dcap.CA]dcap.Signed{dcap.PlatformCA: {Body: File(t, "pck_crl_platform_2023-06.der"), IssuerChain: platform}},
		Root:         File(t, "root_crl_2023.der"),
	}
}

// At2026 is a time at which the TCB info of [Intel2026] is current.
func At2026() time.Time { return time.Date(2026, 2, 10, 0, 0, 0, 0, time.UTC) }

// Intel2026 is Intel's TCB info of February 2026 for the TDX family
// 90C06F000000 and of October 2025 for 00A06D080000, with documents that are
// older: nobody published a complete set.
func Intel2026(t testing.TB) *dcap.Static {
	s, signing := Intel2023(t), File(t, "chain_signing_2025.pem")
	s.TCBInfos = map[dcap.Family]dcap.Signed{
		{Kind: dcap.TDX, FMSPC: family90C06F}: {Body: File(t, "tcb_info_tdx_90c06f000000_2026-02.json"), IssuerChain: signing},
		{Kind: dcap.TDX, FMSPC: family00A06D}: {Body: File(t, "tcb_info_tdx_00a06d080000_2025-10.json"), IssuerChain: signing},
	}
	s.QEIdentities = map[dcap.Kind]dcap.Signed{dcap.TDX: {Body: File(t, "qe_identity_tdx_2025-10.json"), IssuerChain: signing}}
	return s
}
