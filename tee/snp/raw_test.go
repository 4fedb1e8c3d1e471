package snp

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/teetest"
)

// extended is a report with a certificate table behind it.
func extended(t testing.TB) []byte {
	t.Helper()
	table, err := EncodeCertTable([]Certificate{{Type: CertVCEK, Data: vector(t, "test-vcek.der")}})
	if err != nil {
		t.Fatal(err)
	}
	return append(vector(t, "test-report.bin"), table...)
}

func TestFromRaw(t *testing.T) {
	t.Parallel()
	for name, raw := range map[string][]byte{"report": vector(t, "test-report.bin"), "extended": extended(t), "padded table": append(extended(t), make([]byte, 4096)...)} {
		data, err := FromRaw(raw)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		e, err := ParseEvidence(data)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		report, err := e.Report()
		if err != nil || !bytes.Equal(report, raw[:ReportSize]) {
			t.Errorf("%s: the report changed (%v)", name, err)
		}
		if c, ok := e.Certificate(CertVCEK); ok != (name != "report") || ok && !bytes.Equal(c.Data, vector(t, "test-vcek.der")) {
			t.Errorf("%s: got certificate %x", name, c.Data)
		}
	}
}

func TestFromRawRefuses(t *testing.T) {
	t.Parallel()
	report := vector(t, "test-report.bin")
	bad := map[string][]byte{
		"empty":        nil,
		"twice":        slices.Concat(report, report),
		"padded":       append(slices.Clone(report), make([]byte, 4096)...),
		"one byte":     append(slices.Clone(report), 0),
		"too long":     append(slices.Clone(report), make([]byte, MaxRaw)...),
		"wrong endian": change(change(report, 0, 0), 3, 2),
		"JSON":         vector(t, "genoa-evidence.json"),
		"certificate":  vector(t, "test-vcek.der"),
	}
	for name, raw := range bad {
		if data, err := FromRaw(raw); err == nil || data != nil {
			t.Errorf("%s: accepted", name)
		}
	}
	whole := extended(t)
	teetest.EachPrefix(whole, func(cut []byte) {
		if _, err := FromRaw(cut); err == nil && len(cut) != ReportSize {
			t.Errorf("accepted when cut to %d bytes", len(cut))
		}
	})
}

func TestInspect(t *testing.T) {
	t.Parallel()
	milan := vector(t, "test-report.bin")
	debug := change(milan, 0x0A, milan[0x0A]|PolicyDebug>>16)
	for _, tc := range []struct {
		name   string
		data   []byte
		format string
		odd    []string // each in one remark
		fields map[string]any
	}{
		{"raw", milan, "attestation report, version 2, raw", []string{"no certificates"}, map[string]any{"guest_svn": 4, "policy_smt_allowed": true}},
		{"extended", extended(t), "attestation report, version 2, raw", nil, map[string]any{"version": 2}},
		{"JSON", vector(t, "genoa-evidence.json"), "attestation report, version 3, JSON", nil, map[string]any{"generation": "Genoa", "platform_alias_check_complete": true}},
		{"debug", debug, "attestation report, version 2, raw", []string{"debug", "no certificates"}, nil},
		{"version 9", change(milan, 0, 9), "attestation report, version 9, raw", []string{"version: expected 2 to 5, got 9", "generation", "no certificates"}, nil},
		{"reserved byte", change(milan, 0x4C, 1), "attestation report, version 2, raw", []string{"reserved byte 0x4c", "no certificates"}, nil},
		{"unknown platform bit", change(milan, 0x41, 1), "attestation report, version 2, raw", []string{"bit 8", "no certificates"}, nil},
		{"unknown key", bytes.Replace(vector(t, "genoa-evidence.json"), []byte(`{"attestation_report"`), []byte(`{"more":1,"attestation_report"`), 1), "attestation report, version 3, JSON", []string{"more"}, nil},
		{"broken table", append(slices.Clone(milan), 1, 2, 3), "attestation report, version 2, raw", []string{"3 bytes after the report", "no certificates"}, nil},
	} {
		i, err := Inspect(tc.data)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if i.TEE != tee.SNP || i.Format != tc.format {
			t.Errorf("%s: got %s, %q", tc.name, i.TEE, i.Format)
		}
		if len(i.Odd) != len(tc.odd) {
			t.Errorf("%s: got %q, want %q", tc.name, i.Odd, tc.odd)
		} else {
			for n, part := range tc.odd {
				if !strings.Contains(i.Odd[n], part) {
					t.Errorf("%s: got %q, want %q in it", tc.name, i.Odd[n], part)
				}
			}
		}
		for name, want := range tc.fields {
			if i.Fields[name] != want {
				t.Errorf("%s: %s: got %v, want %v", tc.name, name, i.Fields[name], want)
			}
		}
		if _, err := json.Marshal(i); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	for name, data := range map[string][]byte{
		"nothing": nil, "zeros": make([]byte, ReportSize), "short": milan[:100], "no report": []byte(`{"cert_chain":null}`),
		"not JSON": []byte(`{"attestation_report`), "another TEE's": []byte(`{"quote":"AAAA"}`), "huge": make([]byte, MaxEvidence+1),
	} {
		if i, err := Inspect(data); err == nil {
			t.Errorf("%s: got %v", name, i)
		}
	}
}

func TestBits(t *testing.T) {
	t.Parallel()
	good := Report{Version: 3, Policy: PolicyReserved1 | KnownBits(PolicyBits()) | 0xFFFF, PlatInfo: KnownBits(PlatformBits()), KeyInfo: 0x1F}
	if got := good.BitProblems(); got != nil {
		t.Errorf("got %v", got)
	}
	bad := Report{Version: 3, Policy: 1<<26 | 1<<63, PlatInfo: 1<<9 | 1<<40, KeyInfo: 1 << 5}
	var text []string
	for _, p := range bad.BitProblems() {
		text = append(text, p.Field+" "+p.Got)
	}
	want := []string{"policy 0x8000000004000000", "policy 0x8000000004000000 with bit 26, bit 63", "plat_info 0x10000000200 with bit 9, bit 40", "key_info 0x20 with bit 5"}
	if !slices.Equal(text, want) {
		t.Errorf("got %q", text)
	}
	if got := NameBits(PolicyDebug|PolicyCiphertextHiding|1<<50, PolicyBits()); got != "policy_debug_allowed, policy_ciphertext_hiding, bit 50" {
		t.Error(got)
	}
}

// Whatever the document, parsing it allocates less than four times its size.
func TestParsingAllocates(t *testing.T) {
	vectors := map[string][]byte{"genoa": vector(t, "genoa-evidence.json")}
	raw := extended(t)
	extendedJSON, err := FromRaw(raw)
	if err != nil {
		t.Fatal(err)
	}
	vectors["milan"] = extendedJSON
	zero := Report{Version: 2}
	small := Evidence{AttestationReport: zero}
	for range MaxCertificates {
		small.CertChain = append(small.CertChain, Certificate{Type: CertVCEK, Data: []byte{1}})
	}
	if vectors["many small certificates"], err = small.JSON(); err != nil {
		t.Fatal(err)
	}
	small.CertChain[0] = Certificate{Type: CertVCEK, Data: make([]byte, MaxCertificate)}
	if vectors["one large"], err = small.JSON(); err != nil {
		t.Fatal(err)
	}
	other := Certificate{Type: CertOther, GUID: "00112233-4455-6677-8899-aabbccddeeff", Data: make([]byte, 3000)}
	small.CertChain = []Certificate{other, other, {Type: CertOther, GUID: other.GUID, Data: []byte{1}}}
	if vectors["others"], err = small.JSON(); err != nil {
		t.Fatal(err)
	}
	for name, data := range vectors {
		if got := teetest.Allocated(t, func() error { _, err := ParseEvidence(data); return err }); got >= 4*len(data) {
			t.Errorf("%s: evidence of %d bytes: allocated %d", name, len(data), got)
		}
	}
	if got := teetest.Allocated(t, func() error { _, err := ParseRaw(raw); return err }); got >= 4*len(raw) {
		t.Errorf("raw evidence of %d bytes: allocated %d", len(raw), got)
	}
	if got := teetest.Allocated(t, func() error { _, err := DecodeReport(raw[:ReportSize]); return err }); got >= 4*ReportSize {
		t.Errorf("report: allocated %d", got)
	}
}

func FuzzInspect(f *testing.F) {
	f.Add(vector(f, "test-vlek-report.bin"))
	f.Add(extended(f))
	f.Add(vector(f, "genoa-evidence.json"))
	f.Fuzz(func(t *testing.T, data []byte) {
		i, err := Inspect(data)
		if (i == nil) == (err == nil) {
			t.Fatalf("got %v and error %v", i, err)
		}
		if err == nil {
			if _, err := json.Marshal(i); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func FuzzFromRaw(f *testing.F) {
	f.Add(vector(f, "test-report.bin"))
	f.Add(extended(f))
	f.Fuzz(func(t *testing.T, raw []byte) {
		data, err := FromRaw(raw)
		if err != nil {
			return
		}
		if _, err := ParseEvidence(data); err != nil {
			t.Fatalf("its own JSON is refused: %v", err)
		}
	})
}
