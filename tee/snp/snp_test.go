package snp

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func vector(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ptr[T any](v T) *T { return &v }

// filled is a report of a version with a distinct value in every byte that the
// version has.
func filled(version uint32, turin bool) *Report {
	next := byte(0)
	n8 := func() uint8 { next++; return next | 1 }
	fill := func(b []byte) {
		for i := range b {
			b[i] = n8()
		}
	}
	n64 := func() (n uint64) {
		for range 8 {
			n = n<<8 | uint64(n8())
		}
		return n
	}
	tcb := func() TCB {
		t := TCB{Bootloader: n8(), TEE: n8(), SNP: n8(), Microcode: n8()}
		if turin {
			t.FMC = ptr(n8())
		}
		return t
	}
	r := &Report{
		Version: version, GuestSVN: uint32(n64()), Policy: n64(), VMPL: uint32(n64()), SigAlgo: uint32(n64()),
		CurrentTCB: tcb(), PlatInfo: n64(), KeyInfo: uint32(n64()), ReportedTCB: tcb(), CommittedTCB: tcb(), LaunchTCB: tcb(),
		Current: FirmwareVersion{n8(), n8(), n8()}, Committed: FirmwareVersion{n8(), n8(), n8()},
	}
	for _, b := range [][]byte{
		r.FamilyID[:], r.ImageID[:], r.ReportData[:], r.Measurement[:], r.HostData[:], r.IDKeyDigest[:], r.AuthorKeyDigest[:],
		r.ReportID[:], r.ReportIDMA[:], r.ChipID[:], r.Signature.R[:], r.Signature.S[:],
	} {
		fill(b)
	}
	if version >= 3 {
		r.CPUIDFamily, r.CPUIDModel, r.CPUIDStepping = ptr[uint8](0x19), ptr(n8()), ptr(n8())
		if turin {
			r.CPUIDFamily = ptr[uint8](0x1A)
		}
	}
	if version >= 5 {
		r.LaunchMitigation, r.CurrentMitigation = ptr(n64()), ptr(n64())
	}
	if version == 2 && turin {
		clear(r.ChipID[8:]) // how such a report is told from an older chip's
	}
	return r
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for version := uint32(MinVersion); version <= MaxVersion; version++ {
		for _, turin := range []bool{false, true} {
			want := filled(version, turin)
			raw, err := want.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			e, err := NewEvidence(raw, []Certificate{
				{Type: CertVCEK, Data: []byte{0, 1, 255}},
				{Type: CertOther, GUID: "00112233-4455-6677-8899-aabbccddeeff", Data: []byte{}},
			})
			if err != nil {
				t.Fatalf("version %d, Turin %t: %v", version, turin, err)
			}
			if diff := cmp.Diff(*want, e.AttestationReport); diff != "" {
				t.Errorf("version %d, Turin %t: decoded report (-want +got):\n%s", version, turin, diff)
			}
			data, err := e.JSON()
			if err != nil {
				t.Fatal(err)
			}
			again, err := ParseEvidence(data)
			if err != nil {
				t.Fatalf("version %d, Turin %t: %v\n%s", version, turin, err, data)
			}
			if diff := cmp.Diff(e, again); diff != "" {
				t.Errorf("version %d, Turin %t: after JSON (-want +got):\n%s", version, turin, diff)
			}
			if got, err := again.Report(); err != nil || !bytes.Equal(got, raw) {
				t.Errorf("version %d, Turin %t: rebuilt bytes differ (%v)", version, turin, err)
			}
		}
	}
}

func TestVectorsRoundTrip(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"test-report.bin", "test-vlek-report.bin", "azure-report.bin", "azure-genoa-report.bin", "genoa-v5-report.bin", "turin-report.bin"} {
		raw := vector(t, name)
		e, err := NewEvidence(raw, nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		data, err := e.JSON()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseEvidence(data)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := again.Report(); err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%s: rebuilt bytes differ (%v)", name, err)
		}
	}
}

// The names, their order and the number arrays are those of the guest
// components.
func TestWireForm(t *testing.T) {
	t.Parallel()
	e, err := NewEvidence(vector(t, "test-vlek-report.bin"), []Certificate{{Type: CertVLEK, Data: []byte{48, 130}}})
	if err != nil {
		t.Fatal(err)
	}
	data, err := e.JSON()
	if err != nil {
		t.Fatal(err)
	}
	at := 0
	for _, key := range []string{
		"attestation_report", "version", "guest_svn", "policy", "family_id", "image_id", "vmpl", "sig_algo", "current_tcb", "fmc",
		"bootloader", "tee", "snp", "microcode", "plat_info", "key_info", "report_data", "measurement", "host_data", "id_key_digest",
		"author_key_digest", "report_id", "report_id_ma", "reported_tcb", "cpuid_fam_id", "cpuid_mod_id", "cpuid_step", "chip_id",
		"committed_tcb", "current", "major", "minor", "build", "committed", "launch_tcb", "launch_mit_vector", "current_mit_vector",
		"signature", "r", "s", "cert_chain", "cert_type", "data",
	} {
		i := strings.Index(string(data[at:]), `"`+key+`":`)
		if i < 0 {
			t.Fatalf("key %q is missing or out of order", key)
		}
		at += i
	}
	for _, part := range []string{
		`"version":3,"guest_svn":0,"policy":196608,"family_id":[0,0,`, `"vmpl":1,`, `{"fmc":null,"bootloader":4,"tee":0,"snp":24,"microcode":220}`,
		`"cpuid_fam_id":25,`, `"launch_mit_vector":null`, `"cert_chain":[{"cert_type":"VLEK","data":[48,130]}]`,
	} {
		if !strings.Contains(string(data), part) {
			t.Errorf("%s is not in %s", part, data)
		}
	}
	if data, err = (&Evidence{AttestationReport: e.AttestationReport}).JSON(); err != nil || !strings.HasSuffix(string(data), `"cert_chain":null}`) {
		t.Errorf("no certificates: got …%s, %v", data[len(data)-30:], err)
	}
}

func TestParseEvidenceRefuses(t *testing.T) {
	t.Parallel()
	good, err := NewEvidence(vector(t, "test-vlek-report.bin"), []Certificate{{Type: CertVLEK, Data: []byte{48, 130}}})
	if err != nil {
		t.Fatal(err)
	}
	data, err := good.JSON()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseEvidence(data); err != nil {
		t.Fatal(err)
	}
	replace := func(old, new string) string {
		if !strings.Contains(string(data), old) {
			t.Fatalf("%s is not in the evidence", old)
		}
		return strings.Replace(string(data), old, new, 1)
	}
	many := strings.Repeat(`{"cert_type":"VLEK","data":[48,130]},`, MaxCertificates)
	for name, document := range map[string]string{
		"empty":                    ``,
		"null":                     `null`,
		"no report":                `{"cert_chain":null}`,
		"unknown key":              replace(`"vmpl":1`, `"vmpl":1,"vmpl2":1`),
		"duplicate key":            replace(`"vmpl":1`, `"vmpl":1,"vmpl":0`),
		"letter case":              replace(`"vmpl":1`, `"VMPL":1`),
		"trailing data":            string(data) + `{}`,
		"negative":                 replace(`"vmpl":1`, `"vmpl":-1`),
		"number too great":         replace(`"vmpl":1`, `"vmpl":4294967296`),
		"byte too great":           replace(`"family_id":[0,`, `"family_id":[256,`),
		"array too short":          replace(`"family_id":[0,`, `"family_id":[`),
		"array too long":           replace(`"family_id":[0,`, `"family_id":[0,0,`),
		"base64":                   replace(`"data":[48,130]`, `"data":"MII="`),
		"certificate byte":         replace(`[48,130]`, `[48,256]`),
		"certificate byte null":    replace(`[48,130]`, `[48,null]`),
		"certificate byte 1e1":     replace(`[48,130]`, `[48,1e1]`),
		"certificate byte 1.0":     replace(`[48,130]`, `[48,1.0]`),
		"certificate byte -0":      replace(`[48,130]`, `[48,-0]`),
		"certificate byte nested":  replace(`[48,130]`, `[48,[1]]`),
		"certificate byte 0001":    replace(`[48,130]`, `[48,0001]`),
		"certificate data null":    replace(`[48,130]`, `null`),
		"certificate data missing": replace(`,"data":[48,130]`, ``),
		"certificate data object":  replace(`[48,130]`, `{}`),
		"large certificate":        replace(`[48,130]`, `[1`+strings.Repeat(`,1`, MaxCertificate)+`]`),
		"certificate type":         replace(`"cert_type":"VLEK"`, `"cert_type":"vlek"`),
		"certificate type missing": replace(`"cert_type":"VLEK",`, ``),
		"other without GUID":       replace(`"cert_type":"VLEK"`, `"cert_type":{"OTHER":"x"}`),
		"other with more":          replace(`"cert_type":"VLEK"`, `"cert_type":{"OTHER":"00112233-4455-6677-8899-aabbccddeeff","x":1}`),
		"too many certificates":    replace(`"cert_chain":[`, `"cert_chain":[`+many),
		"too large":                string(data) + strings.Repeat(" ", MaxEvidence),
		"version 1":                replace(`"version":3`, `"version":1`),
		"version 6":                replace(`"version":3`, `"version":6`),
		"version 2 with a CPUID":   replace(`"version":3`, `"version":2`),
		"version 3 without":        replace(`"cpuid_fam_id":25`, `"cpuid_fam_id":null`),
		"mitigations in version 3": replace(`"launch_mit_vector":null`, `"launch_mit_vector":0`),
		"FMC on Milan":             replace(`"fmc":null`, `"fmc":0`),
		"Turin without FMC":        replace(`"cpuid_fam_id":25`, `"cpuid_fam_id":26`),
	} {
		if e, err := ParseEvidence(json.RawMessage(document)); err == nil || e != nil {
			t.Errorf("%s: got %v, %v", name, e, err)
		}
	}
}

func TestDecodeReportRefuses(t *testing.T) {
	t.Parallel()
	good := vector(t, "test-vlek-report.bin") // version 3
	for name, change := range map[string]func([]byte) []byte{
		"short":             func(b []byte) []byte { return b[:len(b)-1] },
		"long":              func(b []byte) []byte { return append(b, 0) },
		"version":           func(b []byte) []byte { b[0] = 9; return b },
		"reserved 0x4C":     func(b []byte) []byte { b[0x4C] = 1; return b },
		"reserved 0x18B":    func(b []byte) []byte { b[0x18B] = 1; return b },
		"reserved TCB":      func(b []byte) []byte { b[0x3A] = 1; return b },
		"mitigation vector": func(b []byte) []byte { b[0x1F8] = 1; return b },
		"reserved 0x29F":    func(b []byte) []byte { b[0x29F] = 1; return b },
		"after signature":   func(b []byte) []byte { b[ReportSize-1] = 1; return b },
	} {
		if _, err := DecodeReport(change(slices.Clone(good))); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestGenerationOf(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		family, model uint8
		want          Generation
	}{
		{0x19, 0x00, Milan}, {0x19, 0x0F, Milan}, {0x19, 0x10, Genoa}, {0x19, 0x1F, Genoa}, {0x19, 0x20, ""}, {0x19, 0x9F, ""},
		{0x19, 0xA0, Genoa}, {0x19, 0xAF, Genoa}, {0x19, 0xB0, ""}, {0x1A, 0x00, Turin}, {0x1A, 0x11, Turin}, {0x1A, 0x12, ""}, {0x17, 1, ""},
	} {
		if got := GenerationOf(tc.family, tc.model); got != tc.want {
			t.Errorf("family %#x, model %#x: got %q, want %q", tc.family, tc.model, got, tc.want)
		}
	}
}

func TestCertTable(t *testing.T) {
	t.Parallel()
	want := []Certificate{
		{Type: CertVCEK, Data: []byte("vcek")}, {Type: CertASK, Data: []byte("ask")}, {Type: CertARK, Data: []byte("ark")},
		{Type: CertVLEK, Data: []byte("vlek")}, {Type: CertCRL, Data: []byte("crl")},
		{Type: CertOther, GUID: "00112233-4455-6677-8899-aabbccddeeff", Data: []byte("other")},
	}
	table, err := EncodeCertTable(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseCertTable(append(table, make([]byte, 100)...)) // padded to pages by a host
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, empty := range [][]byte{nil, make([]byte, 8), make([]byte, 4096)} {
		if certs, err := ParseCertTable(empty); err != nil || certs != nil {
			t.Errorf("empty table: got %v, %v", certs, err)
		}
	}
	for name, bad := range map[string][]byte{
		"no closing entry": table[:24],
		"cut":              table[:len(table)-1],
		"length beyond":    change(table, 20, 0xFF),
		"length overflow":  change(table, 23, 0xFF),
		"offset beyond":    change(table, 18, 0xFF),
		"offset in front":  change(table, 16, 24),
		"no length":        change(table, 20, 0),
		"shared bytes":     shared(200),
		"closing first":    append(make([]byte, 24), 1),
		"too many":         bytes.Repeat(append(slices.Clone(table[:16]), make([]byte, 8)...), MaxCertificates+2),
	} {
		if _, err := ParseCertTable(bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for name, bad := range map[string][]Certificate{
		"other without GUID": {{Type: CertOther}},
		"empty type":         {{Type: CertEmpty, Data: []byte{1}}},
		"no data":            {{Type: CertVCEK}},
		"large":              {{Type: CertVCEK, Data: make([]byte, MaxCertificate+1)}},
		"many":               make([]Certificate, MaxCertificates+1),
	} {
		if _, err := EncodeCertTable(bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// shared is a table whose entries have the same bytes.
func shared(n int) []byte {
	table, err := EncodeCertTable([]Certificate{{Type: CertVCEK, Data: make([]byte, n)}, {Type: CertARK, Data: []byte{1}}})
	if err != nil {
		panic(err)
	}
	copy(table[24+16:24+24], table[16:24])
	return table[:3*24+n]
}

func change(b []byte, at int, value byte) []byte {
	out := slices.Clone(b)
	out[at] = value
	return out
}

// TestScanEvidence: what attesters write goes the short way.
func TestScanEvidence(t *testing.T) {
	t.Parallel()
	for _, r := range []*Report{filled(2, false), filled(3, false), filled(5, false), filled(5, true)} {
		certs := []Certificate{{Type: CertVCEK, Data: []byte{0, 1, 255}}, {Type: CertASK, Data: []byte{}}, {Type: CertCRL, Data: make([]byte, 5000)}, {Type: CertOther, GUID: "00112233-4455-6677-8899-aabbccddeeff", Data: []byte{3}}}
		doc, err := json.Marshal(Evidence{AttestationReport: *r, CertChain: certs})
		if err != nil {
			t.Fatal(err)
		}
		var indented bytes.Buffer
		if err := json.Indent(&indented, doc, "", "\t"); err != nil {
			t.Fatal(err)
		}
		alone, err := json.Marshal(Evidence{AttestationReport: *r}) // "cert_chain":null
		if err != nil {
			t.Fatal(err)
		}
		for _, doc := range [][]byte{doc, indented.Bytes(), alone} {
			short, ok := scanEvidence(doc)
			long, err := decodeEvidence(doc)
			if diff := cmp.Diff(long, short); !ok || err != nil || diff != "" {
				t.Errorf("version %d: %v, %v (-long way +short way):\n%s", r.Version, ok, err, diff)
			}
		}
	}
	good := `{"attestation_report":{"version":3,"signature":{"r":` + zeros(72) + `,"s":` + zeros(72) + `}},"cert_chain":[{"cert_type":"VCEK","data":[1]}]}`
	if _, ok := scanEvidence([]byte(good)); !ok {
		t.Error("the template of the following is not accepted")
	}
	for _, change := range [][2]string{
		{`"version":3`, `"version":-3`}, {`"version":3`, `"version":4294967296`}, {`"version":3`, `"version":null`}, {`"version":3`, `"version":3,"version":3`},
		{`"version"`, `"Version"`}, {`"version":3`, `"cpuid_step":256`}, {`"version":3`, `"current_tcb":null`}, {`"version":3`, `"current_tcb":{"snp":1,"snp":1}`},
		{`"r":[0,`, `"r":[0,0,`}, {`"r":[0,`, `"r":[`}, {`"data":[1]`, `"data":[256]`}, {`"data":[1]`, `"data":"AQ=="`}, {`,"data":[1]`, ``},
		{`"VCEK"`, `"vcek"`}, {`"VCEK"`, `{"OTHER":""}`}, {`"VCEK"`, `{}`}, {`"VCEK"`, `{"x""VCEK"`}, {`"VCEK"`, `{"OTHER":"00112233-4455-6677-8899-AABBCCDDEEFF"}`}, {`"VCEK"`, `{"other":"00112233-4455-6677-8899-aabbccddeeff"}`}, {`"cert_type":"VCEK",`, ``}, {`}]}`, `}]} x`}, {`"data":[1]`, `"data":[1],"x":1`}, {`"cert_chain":[`, `"cert_chain":[[],`},
	} {
		doc := strings.Replace(good, change[0], change[1], 1)
		if doc == good {
			t.Errorf("%q is not there", change[0])
		}
		if _, ok := scanEvidence([]byte(doc)); ok {
			t.Errorf("accepted %s", doc)
		}
	}
}

func zeros(n int) string { return "[" + strings.Repeat("0,", n-1) + "0]" }

func FuzzParseEvidence(f *testing.F) {
	for _, name := range []string{"test-report.bin", "test-vlek-report.bin"} {
		e, err := NewEvidence(vector(f, name), []Certificate{{Type: CertVCEK, Data: []byte{1}}})
		if err != nil {
			f.Fatal(err)
		}
		data, err := e.JSON()
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(data))
	}
	f.Add([]byte(`{"attestation_report":{},"cert_chain":null}`))
	f.Add([]byte(`{"attestation_report":{},"cert_chain":[{"cert_type":{"OTHER":""},"data":[]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		// The short way accepts nothing that the long way refuses or reads otherwise.
		if short, ok := scanEvidence(data); ok {
			long, err := decodeEvidence(data)
			if diff := cmp.Diff(long, short); err != nil || diff != "" {
				t.Fatalf("%v (-long way +short way):\n%s", err, diff)
			}
		}
		e, err := ParseEvidence(data)
		if (e == nil) == (err == nil) {
			t.Fatalf("got evidence %v and error %v", e, err)
		}
		if err != nil {
			return
		}
		raw, err := e.Report()
		if err != nil {
			t.Fatalf("parsed evidence has no bytes: %v", err)
		}
		encoded, err := e.JSON()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseEvidence(encoded)
		if err != nil {
			t.Fatalf("its own JSON is refused: %v", err)
		}
		if second, err := again.Report(); err != nil || !bytes.Equal(raw, second) {
			t.Fatalf("bytes changed on the way through JSON (%v)", err)
		}
	})
}

func FuzzDecodeReport(f *testing.F) {
	f.Add(vector(f, "test-report.bin"))
	f.Add(vector(f, "test-vlek-report.bin"))
	f.Add(vector(f, "turin-report.bin"))
	raw, err := filled(5, true).Bytes()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := DecodeReport(raw)
		if err != nil {
			return
		}
		if again, err := r.Bytes(); err != nil || !bytes.Equal(raw, again) {
			t.Fatalf("a decoded report changed (%v)", err)
		}
	})
}

func FuzzParseCertTable(f *testing.F) {
	table, err := EncodeCertTable([]Certificate{{Type: CertVCEK, Data: []byte("vcek")}, {Type: CertARK, Data: []byte("ark")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(table)
	f.Fuzz(func(t *testing.T, table []byte) {
		certs, err := ParseCertTable(table)
		if err != nil && certs != nil {
			t.Fatal("both certificates and an error")
		}
		if _, encodeErr := EncodeCertTable(certs); err == nil && encodeErr != nil {
			t.Fatalf("a parsed table cannot be encoded: %v", encodeErr)
		}
	})
}
