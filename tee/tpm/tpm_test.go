package tpm_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tpm/tpm2"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/teetest"
	"github.com/coffer-project/coffer/tee/tpm"
)

func vector(t testing.TB) []byte {
	t.Helper()
	raw, err := os.ReadFile("testdata/evidence.json")
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func parsed(t testing.TB) *tpm.Evidence {
	t.Helper()
	e, err := tpm.ParseEvidence(vector(t))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestVector(t *testing.T) {
	t.Parallel()
	e := parsed(t)
	a, err := tpm.ParseAttest(e.Quote.Message)
	if err != nil {
		t.Fatal(err)
	}
	want := &tpm.Attest{
		QualifiedSigner: unhex(t, "000b3081a4cbbe307f3de1456f9875a3c2632528a70d91fcf578ccf092465e4e8e09"),
		ExtraData:       unhex(t, "a04182b506878d4f29b91ee606a71a0d3361ccf1b22db20c98adcaa537bea393ef0e41a18b3569ab678f1497fbc5c12000000000000000000000000000000000"),
		Clock:           0x720e6e2b, ResetCount: 2, Safe: true, FirmwareVersion: 0x2019102300163636,
		Selections: []tpm.Selection{{Bank: tpm.AlgSHA256, Bitmap: []byte{0xFF, 0xFF, 0xFF}}},
		PCRDigest:  unhex(t, "019de64c9318655e422c3d03831169896e31f02a1d74e4d8fef575bf4e0d75fa"),
	}
	if diff := cmp.Diff(want, a); diff != "" {
		t.Error(diff)
	}
	if !bytes.Equal(a.Bytes(), e.Quote.Message) {
		t.Error("the message is not the same when written again")
	}
	s, err := tpm.ParseSignature(e.Quote.Signature)
	if err != nil {
		t.Fatal(err)
	}
	if s.String() != "RSASSA-SHA256" || len(s.RSA) != 256 || !bytes.Equal(s.Bytes(), e.Quote.Signature) {
		t.Errorf("signature: %v, %d bytes", s, len(s.RSA))
	}
	again, err := e.JSON()
	if err != nil {
		t.Fatal(err)
	}
	var x, y any
	if json.Unmarshal(again, &x) != nil || json.Unmarshal(vector(t), &y) != nil || !cmp.Equal(x, y) {
		t.Errorf("the evidence is not the same when written again: %s", cmp.Diff(y, x))
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	out, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestAgainstGoTPM compares with another implementation's reader.
func TestAgainstGoTPM(t *testing.T) {
	t.Parallel()
	e := parsed(t)
	ours, err := tpm.ParseAttest(e.Quote.Message)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := tpm2.Unmarshal[tpm2.TPMSAttest](e.Quote.Message)
	if err != nil {
		t.Fatal(err)
	}
	quote, err := theirs.Attested.Quote()
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%x %x %d %d %d %v %x %x %x", theirs.QualifiedSigner.Buffer, theirs.ExtraData.Buffer, theirs.ClockInfo.Clock, theirs.ClockInfo.ResetCount,
		theirs.ClockInfo.RestartCount, bool(theirs.ClockInfo.Safe), theirs.FirmwareVersion, quote.PCRSelect.PCRSelections[0].PCRSelect, quote.PCRDigest.Buffer)
	want := fmt.Sprintf("%x %x %d %d %d %v %x %x %x", ours.QualifiedSigner, ours.ExtraData, ours.Clock, ours.ResetCount,
		ours.RestartCount, ours.Safe, ours.FirmwareVersion, ours.Selections[0].Bitmap, ours.PCRDigest)
	if got != want {
		t.Errorf("go-tpm: %s\nours:   %s", got, want)
	}
}

func TestAttestRefuses(t *testing.T) {
	t.Parallel()
	good := parsed(t).Quote.Message
	teetest.EachPrefix(good, func(cut []byte) {
		if _, err := tpm.ParseAttest(cut); err == nil {
			t.Errorf("%d bytes: accepted", len(cut))
		}
	})
	set := func(at int, with ...byte) []byte {
		out := bytes.Clone(good)
		copy(out[at:], with)
		return out
	}
	const extra, clock, sel = 6 + 2 + 34, 6 + 2 + 34 + 2 + 64, 6 + 2 + 34 + 2 + 64 + 17 + 8
	for name, c := range map[string]struct {
		message []byte
		field   string
	}{
		"padded":               {append(bytes.Clone(good), 0), "1 more"},
		"twice":                {append(bytes.Clone(good), good...), "more"},
		"too long":             {make([]byte, tpm.MaxMessage+1), "at most"},
		"magic":                {set(0, 0), "magic"},
		"magic, little-endian": {set(0, 'G', 'C', 'T', 0xFF), "magic"},
		"a certification":      {set(4, 0x80, 0x17), "type"},
		"huge name":            {set(6, 0xFF, 0xFF), "qualifiedSigner"},
		"huge nonce":           {set(extra, 0xFF, 0xFF), "extraData"},
		"little-endian nonce":  {set(extra, 0x40, 0), "extraData"},
		"safe is 2":            {set(clock+16, 2), "safe"},
		"many banks":           {set(sel, 0xFF, 0xFF, 0xFF, 0xFF), "pcrSelect.count"},
		"little-endian banks":  {set(sel, 1, 0, 0, 0), "pcrSelect.count"},
		"no selection":         {set(sel+6, 0), "sizeofSelect"},
		"long selection":       {set(sel+6, 0xFF), "sizeofSelect"},
		"huge digest":          {set(sel+10, 0xFF, 0xFF), "pcrDigest"},
	} {
		if _, err := tpm.ParseAttest(c.message); err == nil || !strings.Contains(err.Error(), c.field) {
			t.Errorf("%s: expected an error about %s, got %v", name, c.field, err)
		}
	}
}

func TestSignatureRefuses(t *testing.T) {
	t.Parallel()
	good := parsed(t).Quote.Signature
	teetest.EachPrefix(good, func(cut []byte) {
		if _, err := tpm.ParseSignature(cut); err == nil {
			t.Errorf("%d bytes: accepted", len(cut))
		}
	})
	ecdsa := (&tpm.Signature{Scheme: tpm.AlgECDSA, Hash: tpm.AlgSHA384, R: []byte{1, 2}, S: []byte{3}}).Bytes()
	if s, err := tpm.ParseSignature(ecdsa); err != nil || s.String() != "ECDSA-SHA384" || !bytes.Equal(s.R, []byte{1, 2}) || !bytes.Equal(s.S, []byte{3}) {
		t.Errorf("ECDSA: %v, %v", s, err)
	}
	for name, raw := range map[string][]byte{
		"padded": append(bytes.Clone(good), 0), "twice": append(bytes.Clone(good), good...), "too long": make([]byte, tpm.MaxSignature+1),
		"no scheme": append([]byte{0, 0x10}, good[2:]...), "HMAC": append([]byte{0, 5}, good[2:]...), "huge": append([]byte{0, 0x14, 0, 0xB, 0xFF, 0xFF}, good[6:]...),
		"long r": append([]byte{0, 0x18, 0, 0xB, 0, 67}, make([]byte, 80)...),
	} {
		if _, err := tpm.ParseSignature(raw); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestEvidenceRefuses(t *testing.T) {
	t.Parallel()
	good := string(vector(t))
	e := parsed(t)
	key, pcr0 := base64.StdEncoding.EncodeToString(e.AKPublic), strings.Repeat("00", 32)
	for name, text := range map[string]string{
		"nothing": "", "null": "null", "array": "[]", "cut": good[:len(good)-3], "twice": good + good, "more": good + "{}",
		"unknown key": strings.Replace(good, `"ak_public"`, `"x":1,"ak_public"`, 1), "duplicate key": strings.Replace(good, `"ak_public"`, `"ak_public":"AAAA","ak_public"`, 1),
		"no key": strings.Replace(good, key, "", 1), "null key": strings.Replace(good, `"`+key+`"`, "null", 1), "numbers": strings.Replace(good, `"`+key+`"`, "[1,2]", 1),
		"line end in base64": strings.Replace(good, key, key[:64]+`\n`+key[64:], 1), "no padding": strings.Replace(good, `EQg=="`, `EQg"`, 1),
		"loose bits": strings.Replace(good, `EQg=="`, `EQh=="`, 1), "url-safe": strings.Replace(good, "/", "_", 1),
		"long key":     strings.Replace(good, key, base64.StdEncoding.EncodeToString(make([]byte, tpm.MaxKey+1)), 1),
		"23 registers": strings.Replace(good, `"`+pcr0+`",`, "", 1), "25 registers": strings.Replace(good, `"`+pcr0+`",`, `"`+pcr0+`","`+pcr0+`",`, 1),
		"short register": strings.Replace(good, pcr0, pcr0[2:], 1), "long register": strings.Replace(good, pcr0, pcr0+"00", 1),
		"no hex": strings.Replace(good, pcr0, pcr0[:63]+"g", 1), "upper case": strings.Replace(good, pcr0, pcr0[:63]+"A", 1),
		"deep":      strings.Replace(good, `"`+key+`"`, strings.Repeat("[", 100)+strings.Repeat("]", 100), 1),
		"over-long": good + strings.Repeat(" ", tpm.MaxEvidence), "null certificate": strings.Replace(good, `"ak_public"`, `"ak_certificates":[null],"ak_public"`, 1),
		"empty certificate": strings.Replace(good, `"ak_public"`, `"ak_certificates":[""],"ak_public"`, 1),
		"six certificates":  strings.Replace(good, `"ak_public"`, `"ak_certificates":["AAAA","AAAA","AAAA","AAAA","AAAA","AAAA"],"ak_public"`, 1),
	} {
		if text == good {
			t.Fatalf("%s: not changed", name)
		}
		if _, err := tpm.ParseEvidence(json.RawMessage(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	e.AKCertificates, e.EventLog = [][]byte{{1, 2}, {3}}, []byte{4}
	raw, err := e.JSON()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := tpm.ParseEvidence(raw); err != nil || !cmp.Equal(e, again) {
		t.Errorf("extensions: %v, %s", err, cmp.Diff(e, again))
	}
	e.AKPublic = nil
	if _, err := e.JSON(); err == nil {
		t.Error("evidence without a key was encoded")
	}
	if _, err := tpm.FromRaw(e.Quote.Message); err == nil {
		t.Error("a bare quote was taken for evidence")
	}
}

func TestInspect(t *testing.T) {
	t.Parallel()
	e := parsed(t)
	in, err := tpm.Inspect(vector(t))
	if err != nil {
		t.Fatal(err)
	}
	if in.TEE != tee.TPM || len(in.Odd) != 0 || in.Fields["signature_scheme"] != "RSASSA-SHA256" || in.Fields["pcr17"] != strings.Repeat("f", 64) || in.Fields["firmware_version"] != "2019102300163636" {
		t.Errorf("got %+v", in)
	}
	if _, err := json.Marshal(in); err != nil {
		t.Error(err)
	}
	if in, err = tpm.Inspect(e.Quote.Message); err != nil || in.Format != "TPMS_ATTEST" || len(in.Odd) != 0 {
		t.Errorf("bare quote: %+v, %v", in, err)
	}
	if in, err = tpm.Inspect(e.Quote.Message[:40]); err != nil || len(in.Odd) == 0 {
		t.Errorf("cut quote: %+v, %v", in, err)
	}
	odd := bytes.Replace(vector(t), []byte(`"ak_public"`), []byte(`"x":1,"ak_public"`), 1)
	if in, err = tpm.Inspect(odd); err != nil || len(in.Odd) != 1 {
		t.Errorf("unknown key: %+v, %v", in, err)
	}
	for name, data := range map[string]string{"nothing": "", "other evidence": `{"quote":"AAAA"}`, "text": "hello", "too long": strings.Repeat(" ", tpm.MaxEvidence+1)} {
		if in, err := tpm.Inspect([]byte(data)); err == nil {
			t.Errorf("%s: %+v", name, in)
		}
	}
}

// TestAllocation: reading costs less memory than four times what is read.
func TestAllocation(t *testing.T) {
	raw := vector(t)
	got := float64(teetest.Allocated(t, func() error { _, err := tpm.ParseEvidence(raw); return err })) / float64(len(raw))
	t.Logf("%.2f times the input", got)
	if got >= 4 {
		t.Errorf("expected less than 4 times the input, got %.2f", got)
	}
}

func FuzzParseEvidence(f *testing.F) {
	f.Add(vector(f))
	f.Add([]byte(`{"tpm_quote":{"signature":"","message":"","pcrs":[]},"ak_public":""}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if in, err := tpm.Inspect(raw); (err == nil) != (in != nil) {
			t.Error("neither an inspection nor an error")
		}
		e, err := tpm.ParseEvidence(raw)
		if err != nil {
			return
		}
		again, err := e.JSON()
		if err != nil {
			t.Fatal(err)
		}
		if f, err := tpm.ParseEvidence(again); err != nil || !cmp.Equal(e, f) {
			t.Errorf("%v: %s", err, cmp.Diff(e, f))
		}
	})
}

// FuzzParseAttest also compares with go-tpm, which is more lenient.
func FuzzParseAttest(f *testing.F) {
	f.Add(parsed(f).Quote.Message)
	f.Add(unhex(f, "ff54434780180022000bbf15d1053b33c81c80e3f9892b1f359474102661abfabf2889dbbca9ab2b445900096368616c6c656e676500000000001b6f9c000000020000000001202003120012000300000001000b03ffffff0020cfa3a9112493e8c8741c1d895ced6d05a9ea19a24a02a44a8b02eaf22a1b143f"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, err := tpm.ParseAttest(raw)
		if err != nil {
			return
		}
		if !bytes.Equal(a.Bytes(), raw) {
			t.Errorf("%x was read as %x", raw, a.Bytes())
		}
		theirs, err := tpm2.Unmarshal[tpm2.TPMSAttest](raw)
		if err != nil {
			t.Fatalf("go-tpm refuses what is accepted here: %v", err)
		}
		if !bytes.Equal(theirs.ExtraData.Buffer, a.ExtraData) {
			t.Errorf("go-tpm reads another nonce")
		}
	})
}

func FuzzParseSignature(f *testing.F) {
	f.Add(parsed(f).Quote.Signature)
	f.Add((&tpm.Signature{Scheme: tpm.AlgECDSA, Hash: tpm.AlgSHA384, R: []byte{1, 2}, S: []byte{3}}).Bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := tpm.ParseSignature(raw)
		if err == nil && !bytes.Equal(s.Bytes(), raw) {
			t.Errorf("%x was read as %x", raw, s.Bytes())
		}
	})
}
