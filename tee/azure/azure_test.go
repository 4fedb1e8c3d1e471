package azure_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/azure"
	"github.com/coffer-project/coffer/tee/internal/teetest"
	"github.com/coffer-project/coffer/tee/tpm"
)

func file(t testing.TB, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// vectors are the published pieces of evidence and their versions.
func vectors() map[string]struct {
	name    tee.Name
	version int
} {
	return map[string]struct {
		name    tee.Name
		version int
	}{
		"snp-v0.json": {tee.AzureSNPVTPM, 0}, "snp-v1.json": {tee.AzureSNPVTPM, 1}, "snp-v2.json": {tee.AzureSNPVTPM, 2},
		"snp-genoa-v0.json": {tee.AzureSNPVTPM, 0}, "tdx-v0.json": {tee.AzureTDXVTPM, 0}, "tdx-v1.json": {tee.AzureTDXVTPM, 1},
	}
}

func TestVectors(t *testing.T) {
	t.Parallel()
	for f, want := range vectors() {
		e, err := azure.ParseEvidence(want.name, file(t, f))
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		r, err := azure.ParseReport(e.HCLReport)
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		c, err := azure.ParseRuntimeClaims(r.VarData)
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		a, err := tpm.ParseAttest(e.Quote.Message)
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		if e.Version != want.version || r.Type.TEE() != want.name || c.AK.N.BitLen() != 2048 || len(a.Selections) != 1 || c.Configuration["secure-boot"] != true {
			t.Errorf("%s: version %d, %s, %d bits, %+v", f, e.Version, r.Type.TEE(), c.AK.N.BitLen(), c.Configuration)
		}
		// The digest of the claims is in the hardware report (SNP: at 0x50).
		sum, data := sha256.Sum256(r.VarData), r.Hardware[0x50:0x90]
		if want.name == tee.AzureTDXVTPM {
			data = r.TDReportData()
			if quoted := e.TDQuote[48+120:][:400]; !bytes.Equal(quoted, r.TDInfo()) {
				t.Errorf("%s: TDINFO differs from the quote's", f)
			}
		}
		if !bytes.Equal(data[:32], sum[:]) {
			t.Errorf("%s: report data: expected %x, got %x", f, sum, data)
		}
		again, err := r.Bytes(len(e.HCLReport))
		if err != nil || !bytes.Equal(again, e.HCLReport) {
			t.Errorf("%s: the HCL report is not the same when written again: %v", f, err)
		}
		for other := range vectors() {
			if vectors()[other].name != want.name {
				if _, err := azure.ParseEvidence(vectors()[other].name, file(t, f)); err == nil {
					t.Errorf("%s: taken for %s", f, vectors()[other].name)
				}
			}
		}
		if e.Version == 0 {
			if _, err := e.JSON(); err == nil {
				t.Errorf("%s: version 0 was encoded", f)
			}
			continue
		}
		text, err := e.JSON()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := azure.ParseEvidence(want.name, text); err != nil || !cmp.Equal(e, got) {
			t.Errorf("%s: not the same when written again: %v", f, err)
		}
	}
	if _, err := azure.ParseEvidence(tee.SNP, file(t, "snp-v2.json")); err == nil {
		t.Error("parsed as plain SNP")
	}
}

func TestReportRefuses(t *testing.T) {
	t.Parallel()
	good := file(t, "snp-hcl-report.bin")
	if _, err := azure.ParseReport(good); err != nil {
		t.Fatal(err)
	}
	set := func(at int, v uint32) []byte {
		out := bytes.Clone(good)
		binary.LittleEndian.PutUint32(out[at:], v)
		return out
	}
	with := func(raw []byte, at int, b byte) []byte {
		raw[at] = b
		return raw
	}
	for name, c := range map[string]struct {
		raw   []byte
		field string
	}{
		"empty": {nil, "HCL report"}, "cut": {good[:1235], "HCL report"}, "over-long": {make([]byte, azure.MaxReport+1), "HCL report"},
		"magic": {set(0, 1), "signature"}, "version 0": {set(4, 0), "version"}, "version 3": {set(4, 3), "version"}, "big-endian version": {set(4, 1<<24), "version"},
		"size": {set(8, 2345), "report_size"}, "huge size": {set(8, 0xFFFFFFFF), "report_size"}, "request": {set(12, 1), "request_type"},
		"status": {set(16, 1), "status"}, "reserved": {set(28, 1), "reserved[2]"}, "data size": {set(1216, 0), "data_size"},
		"data version": {set(1220, 2), "data version"}, "VBS": {set(1224, 1), "report_type"}, "TVM": {set(1224, 3), "report_type"}, "hash": {set(1228, 2), "hash_type"},
		"claims of nothing": {set(1232, 0), "report_size"}, "huge claims": {set(1232, 0xFFFFFFFF), "var_data_size"}, "big-endian claims": {set(1232, 1110<<16), "var_data_size"},
		"behind": {append(bytes.Clone(good), 1), "zeros"}, "TDX with more": {with(set(1224, 4), 32+1024, 1), "TDX report"},
	} {
		if _, err := azure.ParseReport(c.raw); err == nil || !strings.Contains(err.Error(), c.field) {
			t.Errorf("%s: expected an error about %s, got %v", name, c.field, err)
		}
	}
	r, err := azure.ParseReport(good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Bytes(100); err == nil {
		t.Error("written into 100 bytes")
	}
}

func TestRuntimeClaimsRefuse(t *testing.T) {
	t.Parallel()
	r, err := azure.ParseReport(file(t, "snp-hcl-report.bin"))
	if err != nil {
		t.Fatal(err)
	}
	good := string(r.VarData)
	replace := func(old, with string) string {
		out := strings.Replace(good, old, with, 1)
		if out == good {
			t.Fatalf("%s: not found", old)
		}
		return out
	}
	for name, text := range map[string]string{
		"nothing": "", "null": "null", "array": "[]", "cut": good[:len(good)-1], "twice": good + good,
		"no keys": replace(`"keys"`, `"kays"`), "null keys": replace(good[strings.Index(good, "[{"):strings.Index(good, "],\"vm")+1], "null"),
		"no key of that name": replace("HCLAkPub", "HCLBkPub"), "twice the key": replace("HCLEkPub", "HCLAkPub"), "key without name": replace(`"kid"`, `"kod"`),
		"duplicate name": replace(`"user-data"`, `"keys":[],"user-data"`), "duplicate in a key": replace(`"kty":"RSA"`, `"kty":"RSA","kty":"RSA"`),
		"EC": replace(`"kty":"RSA"`, `"kty":"EC"`), "huge exponent": replace("AQAB", "AQABAQAB"), "zero exponent": replace("AQAB", ""), "padded exponent": replace("AQAB", "AAEAAQ"),
		"padding": replace("AQAB", "AQ=="), "huge modulus": replace(`"n":"`, `"n":"`+strings.Repeat("A", 3000)),
		"no user data": replace("user-data", "user-dota"), "short user data": replace(strings.Repeat("00", 64), "00"), "no hex": replace(strings.Repeat("00", 64), strings.Repeat("0g", 64)),
		"configuration": replace(`"vm-configuration":{`, `"vm-configuration":[],"x":{`), "deep": replace(`"vm-configuration":{`, `"x":`+strings.Repeat("[", 30)+strings.Repeat("]", 30)+`,"vm-configuration":{`),
	} {
		if _, err := azure.ParseRuntimeClaims([]byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := azure.ParseRuntimeClaims([]byte(replace(`"console-enabled"`, `"new-in-2027":[1,{"a":null}],"console-enabled"`))); err != nil {
		t.Errorf("a member that Azure may add: %v", err)
	}
}

func TestEvidenceRefuses(t *testing.T) {
	t.Parallel()
	old, current := string(file(t, "snp-v0.json")), string(file(t, "snp-v2.json"))
	replace := func(in, old, with string) string {
		out := strings.Replace(in, old, with, 1)
		if out == in {
			t.Fatalf("%s: not found", old)
		}
		return out
	}
	var parts map[string]json.RawMessage
	if err := json.Unmarshal([]byte(current), &parts); err != nil {
		t.Fatal(err)
	}
	vcek := strings.Trim(string(parts["vcek"]), `"`)
	var quote map[string]json.RawMessage
	if err := json.Unmarshal([]byte(old), &parts); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(parts["quote"], &quote); err != nil {
		t.Fatal(err)
	}
	signature := string(quote["signature"])
	for name, text := range map[string]string{
		"nothing": "", "null": "null", "array": "[]", "empty": "{}", "cut": current[:len(current)-4], "twice": current + current,
		"version 3": replace(current, `"version": 2`, `"version": 3`), "version 0": replace(current, `"version": 2`, `"version": 0`), "negative": replace(current, `"version": 2`, `"version": -1`),
		"text": replace(current, `"version": 2`, `"version": "2"`), "no version": replace(current, `"version": 2,`, ``), "fraction": replace(current, `"version": 2`, `"version": 2.0`),
		"unknown key": replace(current, `"version"`, `"x":1,"version"`), "duplicate key": replace(current, `"version": 2`, `"version": 2,"version": 2`),
		"both forms": replace(current, `"version"`, `"report":[1],"version"`), "a quote of TDX": replace(current, `"version"`, `"td_quote":"AAAA","version"`),
		"no certificate": replace(current, `"`+vcek+`"`, `""`), "null certificate": replace(current, `"`+vcek+`"`, `null`), "number": replace(current, `"`+vcek+`"`, `1`),
		"standard base64": replace(current, vcek, "+"+vcek[1:]), "no padding": replace(current, vcek, vcek[:len(vcek)-2]+"A"), "line end": replace(current, vcek, vcek[:4]+`\n`+vcek[4:]),
		"old with version": replace(old, `{`, `{"version":1,`), "256": replace(old, signature, replace(signature, "22", "256")), "negative number": replace(old, signature, replace(signature, "22", "-1")),
		"fractions": replace(old, signature, replace(signature, "22", "1.5")), "exponents": replace(old, signature, replace(signature, "22", "1e1")), "nested": replace(old, signature, replace(signature, "22", "[22]")),
		"text for numbers": replace(old, signature, `"AAAA"`), "no numbers": replace(old, signature, `[]`), "null for numbers": replace(old, signature, `null`),
		"many numbers": replace(old, signature, "["+strings.Repeat("1,", 2000)+"1]"), "object for numbers": replace(old, signature, `{}`),
		"over-long": current + strings.Repeat(" ", azure.MaxEvidence), "deep": replace(current, `"version"`, `"quote":`+strings.Repeat("[", 50)+strings.Repeat("]", 50)+`,"version"`),
	} {
		if _, err := azure.ParseEvidence(tee.AzureSNPVTPM, json.RawMessage(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := azure.FromRaw(file(t, "snp-hcl-report.bin")); err == nil {
		t.Error("a bare report was taken for evidence")
	}
}

func TestInspect(t *testing.T) {
	t.Parallel()
	for f, want := range vectors() {
		in, err := azure.Inspect(file(t, f))
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		if in.TEE != want.name || in.Fields["pcr00"] == nil || in.Fields["report_data"] == nil || in.Fields["user_data"] == nil || (len(in.Odd) == 0) != (want.version == 2) {
			t.Errorf("%s: %+v", f, in)
		}
		if _, err := json.Marshal(in); err != nil {
			t.Error(err)
		}
	}
	if in, err := azure.Inspect(file(t, "tdx-hcl-report.bin")); err != nil || in.TEE != tee.AzureTDXVTPM || in.Format != "HCL report" {
		t.Errorf("HCL report: %+v, %v", in, err)
	}
	for name, data := range map[string]string{"nothing": "", "text": "x", "other evidence": `{"quote":"AAAA"}`, "too long": strings.Repeat(" ", azure.MaxEvidence+1)} {
		if in, err := azure.Inspect([]byte(data)); err == nil {
			t.Errorf("%s: %+v", name, in)
		}
	}
}

// TestAllocation: reading costs less memory than four times what is read.
func TestAllocation(t *testing.T) {
	for f, want := range vectors() {
		raw := file(t, f)
		got := float64(teetest.Allocated(t, func() error { _, err := azure.ParseEvidence(want.name, raw); return err })) / float64(len(raw))
		t.Logf("%s: %.2f times the input", f, got)
		if got >= 4 {
			t.Errorf("%s: expected less than 4 times the input, got %.2f", f, got)
		}
	}
}

func TestPrefixes(t *testing.T) {
	t.Parallel()
	whole := bytes.TrimSpace(file(t, "snp-v2.json"))
	teetest.EachPrefix(whole, func(cut []byte) {
		if _, err := azure.ParseEvidence(tee.AzureSNPVTPM, cut); err == nil {
			t.Errorf("%d bytes: accepted", len(cut))
		}
	})
}

func FuzzParseEvidence(f *testing.F) {
	for name := range vectors() {
		f.Add(file(f, name))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if in, err := azure.Inspect(raw); (err == nil) != (in != nil) {
			t.Error("neither an inspection nor an error")
		}
		for _, name := range []tee.Name{tee.AzureSNPVTPM, tee.AzureTDXVTPM} {
			e, err := azure.ParseEvidence(name, raw)
			if err != nil || e.Version == 0 {
				continue
			}
			text, err := e.JSON()
			if err != nil {
				t.Fatal(err)
			}
			if again, err := azure.ParseEvidence(name, text); err != nil || !cmp.Equal(e, again) {
				t.Errorf("%v: %s", err, cmp.Diff(e, again))
			}
		}
	})
}

func FuzzParseReport(f *testing.F) {
	f.Add(file(f, "snp-hcl-report.bin"))
	f.Add(file(f, "tdx-hcl-report.bin"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := azure.ParseReport(raw)
		if err != nil {
			return
		}
		if again, err := r.Bytes(len(raw)); err != nil || !bytes.Equal(raw, again) {
			t.Errorf("%x was read as %x, %v", raw, again, err)
		}
		c, err := azure.ParseRuntimeClaims(r.VarData)
		if err == nil && (c.AK == nil || len(c.UserData) != azure.UserDataSize) {
			t.Errorf("incomplete claims: %+v", c)
		}
	})
}
