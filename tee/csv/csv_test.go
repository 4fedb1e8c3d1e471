package csv

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/teetest"
)

func read(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestEvidence(t *testing.T) {
	t.Parallel()
	data := read(t, "evidence.json")
	e, err := ParseEvidence(data)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := e.SerialNumber(); err != nil || s != "KPA64911240507" || e.HSK != nil || len(e.EventLog) != 77 {
		t.Errorf("got %q, %v, %+v", s, err, e)
	}
	again, err := e.JSON()
	if err != nil {
		t.Fatal(err)
	}
	var want, got any
	if err := json.Unmarshal(data, &want); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(again, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// With the certificates in the evidence the round trip is the same.
	pair := read(t, "hsk_cek.cert")
	e.HSK, e.CEK, e.EventLog = pair[:CACertificateSize], pair[CACertificateSize:], nil
	if again, err = e.JSON(); err != nil {
		t.Fatal(err)
	}
	e2, err := ParseEvidence(again)
	if diff := cmp.Diff(e, e2); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
}

func TestEvidenceRefuses(t *testing.T) {
	t.Parallel()
	good := string(read(t, "evidence.json"))
	replace := func(old, other string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("the evidence has no %q", old)
		}
		return strings.Replace(good, old, other, 1)
	}
	for name, in := range map[string]string{
		"empty": "", "null": "null", "array": "[]", "nothing": "{}", "cut": good[:len(good)-1], "twice": good + good, "duplicate": replace(`"flags"`, `"flags":0,"flags"`), "unknown": replace(`"flags"`, `"more":0,"flags"`),
		"case": replace(`"flags"`, `"Flags"`), "negative": replace(`"flags":0`, `"flags":-1`), "huge": replace(`"flags":0`, `"flags":4294967296`), "fraction": replace(`"flags":0`, `"flags":0.5`),
		"short page": replace(`"data":[38,`, `"data":[`), "long page": replace(`"data":[38,`, `"data":[38,38,`), "not a byte": replace(`"data":[38,`, `"data":[300,`), "text": replace(`"data":[38,`, `"data":["38",`),
		"one signature": replace(`"sigs":[`, `"sigs":[null,`), "log": replace(`"cc_eventlog":"`, `"cc_eventlog":"!`), "long": good + strings.Repeat(" ", MaxEvidence),
		"null chain": replace(`"hsk_cek"`[:0]+`"pek":{`, `"hsk_cek":{"hsk":null,"cek":null},"pek":{`), "deep": replace(`"serial_number":[`, `"serial_number":[`+strings.Repeat("[", 100)),
	} {
		if e, err := ParseEvidence(json.RawMessage(in)); err == nil || !strings.HasPrefix(err.Error(), "csv: ") {
			t.Errorf("%s: got %+v, %v", name, e, err)
		}
	}
}

func TestSerialNumber(t *testing.T) {
	t.Parallel()
	for text, ok := range map[string]bool{"A1": true, "": false, "A 1": false, "../x": false, "A\x001": false, "é": false, strings.Repeat("x", 64): true} {
		if _, err := (&Evidence{Serial: tee.Fit([]byte(text), SerialSize)}).SerialNumber(); ok != (err == nil) {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

func TestFromRaw(t *testing.T) {
	t.Parallel()
	raw := read(t, "report.bin")
	data, err := FromRaw(raw)
	if err != nil {
		t.Fatal(err)
	}
	page, err := FromRaw(append(bytes.Clone(raw), make([]byte, PageSize-len(raw))...))
	if err != nil || !bytes.Equal(page, data) {
		t.Errorf("page: %v", err)
	}
	e, err := ParseEvidence(data)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := e.SerialNumber(); err != nil || s != "NZA9T14052605" {
		t.Errorf("got %q, %v", s, err)
	}
	teetest.EachPrefix(raw, func(cut []byte) {
		if _, err := FromRaw(cut); err == nil {
			t.Errorf("accepted %d bytes", len(cut))
		}
	})
	for name, in := range map[string][]byte{"padded": append(bytes.Clone(raw), 0), "doubled": append(bytes.Clone(raw), raw...), "zeros": make([]byte, PageSize), "over-long": make([]byte, 1<<20)} {
		if _, err := FromRaw(in); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// Versions 2 and 3 are told apart by host data.
	old, err := e.Report()
	if err != nil {
		t.Fatal(err)
	}
	for v, host := range map[int]byte{2: 0, 3: 9} {
		ext := make([]byte, infoV2+signerSize)
		ext[hostDataAt] = host
		copy(ext[infoV2:], old.Signer.PEK)
		copy(ext[infoV2+CertificateSize:], old.Signer.Serial)
		data, err := FromRaw(ext)
		if err != nil {
			t.Fatal(err)
		}
		e, err := ParseEvidence(data)
		if err != nil {
			t.Fatal(err)
		}
		r, err := e.Report()
		if err != nil || r.Version != v || (v == 3) != (r.HostData != nil) {
			t.Errorf("version %d: got %+v, %v", v, r, err)
		}
	}
}

func TestParseReportRefuses(t *testing.T) {
	t.Parallel()
	page := append(read(t, "report.bin"), make([]byte, PageSize-2548)...)
	ext := [16]byte([]byte(extMagic))
	for name, tc := range map[string]struct {
		page  []byte
		magic [16]byte
		flags uint32
	}{
		"short": {page[:PageSize-1], [16]byte{}, 0}, "flags without magic": {page, [16]byte{}, 1}, "another magic": {page, [16]byte{1}, 0}, "unknown flags": {page, ext, 2},
		"more flags": {page, ext, 7}, "as version 2": {page, ext, 1},
		"greater r":    {change(page, 0xC0+40, 1), [16]byte{}, 0},
		"bytes behind": {change(page, PageSize-1, 1), [16]byte{}, 0},
	} {
		if r, err := ParseReport(tc.page, tc.magic, tc.flags); err == nil {
			t.Errorf("%s: got %+v", name, r)
		}
	}
}

func change(b []byte, at int, value byte) []byte {
	out := bytes.Clone(b)
	out[at] = value
	return out
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	pair := read(t, "hsk_cek.cert")
	hsk, err := ParseCACertificate(pair[:CACertificateSize])
	if err != nil || hsk.Key.Usage != UsageHSK || string(hsk.Key.UserID) != "HYGON-SSD-HSK" {
		t.Fatalf("got %+v, %v", hsk, err)
	}
	cek, err := ParseCertificate(pair[CACertificateSize:])
	if err != nil || cek.Key.Usage != UsageCEK || cek.SignerID != hsk.KeyID || string(cek.Key.UserID) != "HYGON-SSD-CEK" {
		t.Fatalf("got %+v, %v", cek, err)
	}
	if _, err := cek.SignatureOf(UsageHSK); err != nil {
		t.Error(err)
	}
	if _, err := cek.SignatureOf(UsageCEK); err == nil {
		t.Error("found a signature that is not there")
	}
	two := bytes.Clone(pair[CACertificateSize:])
	copy(two[bodySize+slotSize:], two[bodySize:bodySize+slotSize])
	if c, err := ParseCertificate(two); err != nil {
		t.Error(err)
	} else if _, err := c.SignatureOf(UsageHSK); err == nil {
		t.Error("took one of two signatures")
	}
	for name, at := range map[string]int{"curve": 64, "x": 68 + 40, "y": 140 + 40, "user identifier": 213, "signature": caBodySize + 60, "padding": CACertificateSize - 1} {
		if _, err := ParseCACertificate(change(pair[:CACertificateSize], at, 0xFF)); err == nil {
			t.Errorf("HSK: %s: accepted", name)
		}
	}
	for name, at := range map[string]int{"curve": 16, "x": 20 + 40, "y": 92 + 40, "user identifier": 165, "padding": CertificateSize - 1} {
		if _, err := ParseCertificate(change(pair[CACertificateSize:], at, 0xFF)); err == nil {
			t.Errorf("CEK: %s: accepted", name)
		}
	}
	for _, cut := range [][]byte{nil, pair[:CACertificateSize-1], pair} {
		_, err1 := ParseCACertificate(cut)
		_, err2 := ParseCertificate(cut)
		if err1 == nil || err2 == nil {
			t.Errorf("accepted %d bytes", len(cut))
		}
	}
}

func TestInspect(t *testing.T) {
	t.Parallel()
	raw := read(t, "report.bin")
	i, err := Inspect(raw)
	if err != nil || i.TEE != tee.CSV || len(i.Odd) != 0 || i.Fields["serial_number"] != "NZA9T14052605" {
		t.Errorf("got %+v, %v", i, err)
	}
	if i, err = Inspect(read(t, "evidence.json")); err != nil || len(i.Odd) != 0 || !strings.Contains(i.Format, "JSON") {
		t.Errorf("got %+v, %v", i, err)
	}
	e, err := ParseEvidence(read(t, "evidence.json"))
	if err != nil {
		t.Fatal(err)
	}
	e.Page[176] ^= 1 // nodbg
	e.Page[184] ^= 1 // algorithm
	e.Serial = tee.Fit([]byte("other"), SerialSize)
	data, err := e.JSON()
	if err != nil {
		t.Fatal(err)
	}
	if i, err = Inspect(data); err != nil || len(i.Odd) != 3 {
		t.Errorf("got %+v, %v", i, err)
	}
	if _, err := Inspect([]byte("nonsense")); err == nil {
		t.Error("inspected nonsense")
	}
}

func TestAllocation(t *testing.T) {
	data := read(t, "evidence.json")
	got := teetest.Allocated(t, func() error { _, err := ParseEvidence(data); return err })
	if got > 4*len(data) {
		t.Errorf("%d bytes: allocated %d", len(data), got)
	}
}

func FuzzParseEvidence(f *testing.F) {
	f.Add(read(f, "evidence.json"))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ParseEvidence(data)
		if err != nil {
			return
		}
		again, err := e.JSON()
		if err != nil {
			t.Fatal(err)
		}
		if e2, err := ParseEvidence(again); err != nil || !bytes.Equal(e.Page, e2.Page) || !bytes.Equal(e.PEK, e2.PEK) {
			t.Errorf("got %v, %v", e2, err)
		}
	})
}

func FuzzFromRaw(f *testing.F) {
	f.Add(read(f, "report.bin"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		data, err := FromRaw(raw)
		if _, inspectErr := Inspect(raw); err == nil && inspectErr != nil {
			t.Errorf("not inspected: %v", inspectErr)
		}
		if err != nil {
			return
		}
		e, err := ParseEvidence(data)
		if err != nil {
			t.Fatal(err)
		}
		r, err := e.Report()
		if err != nil || !bytes.Equal(r.Signer.PEK, e.PEK) || !bytes.Equal(r.Signer.Serial, e.Serial) {
			t.Errorf("got %+v, %v", r, err)
		}
	})
}

func FuzzCertificates(f *testing.F) {
	f.Add(read(f, "hsk_cek.cert"))
	f.Add(read(f, "hrk.cert"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if c, err := ParseCACertificate(raw); err == nil && len(c.Key.UserID) > maxUserID {
			t.Errorf("got %+v", c)
		}
		if c, err := ParseCertificate(raw); err == nil {
			_, _ = c.SignatureOf(UsageHSK)
		}
	})
}
