package dcapquote_test

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee/dcap/dcapmint"
	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
	"github.com/coffer-project/coffer/tee/dcap/dcaptest"
)

// leaf is the first certificate of a quote.
func leaf(t testing.TB, name string) *x509.Certificate {
	t.Helper()
	raw := dcaptest.File(t, name)
	block, _ := pem.Decode(raw[bytes.Index(raw, []byte("-----BEGIN")):])
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestParsePCK(t *testing.T) {
	t.Parallel()
	got, err := dcapquote.ParsePCK(leaf(t, "sgx_quote_v3_debug.bin"))
	if err != nil {
		t.Fatal(err)
	}
	want := &dcapquote.PCK{
		PPID:       [16]byte{0xb9, 0xc9, 0x2e, 0xb5, 0x05, 0x3c, 0xb1, 0x58, 0x95, 0x6f, 0x4e, 0x68, 0xb6, 0xd8, 0x2f, 0x52},
		Components: [16]byte{4, 4, 3, 3, 255, 255}, PCESVN: 11, CPUSVN: [16]byte{4, 4, 3, 3, 255, 255}, FMSPC: [6]byte{0, 0x60, 0x6a}, SGXType: dcapquote.SGXScalable,
		PlatformInstanceID: &[16]byte{0xc8, 0xc0, 0xcf, 0xb2, 0x3d, 0x3d, 0xd9, 0x0b, 0x06, 0xd5, 0x5c, 0x06, 0x41, 0x69, 0x3a, 0x7a},
		Configuration:      &dcapquote.Configuration{DynamicPlatform: true, CachedKeys: true, SMTEnabled: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	got, err = dcapquote.ParsePCK(leaf(t, "tdx_quote_v4_azure_padded.bin"))
	if err != nil || got.Configuration.CachedKeys || !got.Configuration.SMTEnabled {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := dcapquote.ParsePCK(&x509.Certificate{}); err == nil {
		t.Error("a certificate without the extension")
	}
}

// What is encoded is read back, and is what Intel encodes.
func TestPCKExtension(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"sgx_quote_v3_debug.bin", "tdx_quote_v4_debug.bin", "tdx_quote_v5.bin", "tdx_quote_v4_azure_padded.bin"} {
		c := leaf(t, name)
		p, err := dcapquote.ParsePCK(c)
		if err != nil {
			t.Fatal(err)
		}
		e, err := dcapmint.PCKExtension(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, real := range c.Extensions {
			if real.Id.Equal(e.Id) && !bytes.Equal(real.Value, e.Value) {
				t.Errorf("%s: expected %x, got %x", name, real.Value, e.Value)
			}
		}
	}
	p := &dcapquote.PCK{SGXType: dcapquote.SGXStandard, FMSPC: [6]byte{1}}
	e, err := dcapmint.PCKExtension(p)
	if err != nil {
		t.Fatal(err)
	}
	got, err := dcapquote.ParsePCK(&x509.Certificate{Extensions: []pkix.Extension{e}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p, got); diff != "" {
		t.Error(diff)
	}
}

func TestPCKExtensionRefused(t *testing.T) {
	t.Parallel()
	c := leaf(t, "sgx_quote_v3_debug.bin")
	id := asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}
	var value []byte
	for _, e := range c.Extensions {
		if e.Id.Equal(id) {
			value = e.Value
		}
	}
	parse := func(value []byte) error {
		_, err := dcapquote.ParsePCK(&x509.Certificate{Extensions: []pkix.Extension{{Id: id, Value: value}}})
		return err
	}
	if err := parse(value); err != nil {
		t.Fatal(err)
	}
	for n := range value {
		if parse(value[:n]) == nil {
			t.Errorf("accepted with %d bytes", n)
		}
	}
	replace := func(old, with string) []byte {
		if strings.Count(string(value), old) == 0 {
			t.Fatalf("no %x", old)
		}
		return []byte(strings.Replace(string(value), old, with, 1))
	}
	arc := "\x2a\x86\x48\x86\xf8\x4d\x01\x0d\x01"
	for name, other := range map[string][]byte{
		"left over": append(bytes.Clone(value), 0), "no FMSPC": replace(arc+"\x04", arc+"\x09"), "FMSPC twice": replace(arc+"\x01\x04\x10", arc+"\x04\x04\x10"),
		"SGX type": replace(arc+"\x05\x0a\x01\x01", arc+"\x05\x0a\x01\x03"), "negative SGX type": replace(arc+"\x05\x0a\x01\x01", arc+"\x05\x0a\x01\xff"),
		"SGX type as number": replace(arc+"\x05\x0a", arc+"\x05\x02"), "negative SVN": replace(arc+"\x02\x01\x02\x01\x04", arc+"\x02\x01\x02\x01\x84"), "another arc": replace(arc+"\x03", "\x2a\x86\x48\x86\xf8\x4d\x01\x0d\x02\x03"),
		"flag as number": replace(arc+"\x07\x01\x01\x01\xff", arc+"\x07\x01\x02\x01\x01"),
	} {
		if parse(other) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestEnclaveReport(t *testing.T) {
	t.Parallel()
	raw := make([]byte, dcapquote.EnclaveReportSize)
	for i := range raw {
		raw[i] = byte(i * 7)
	}
	r, err := dcapquote.ParseEnclaveReport(raw)
	if err != nil || !bytes.Equal(r.Bytes(), raw) || r.ReservedZero() {
		t.Errorf("a report does not encode to what it was read from: %v", err)
	}
	for _, n := range []int{0, 383, 385} {
		if _, err := dcapquote.ParseEnclaveReport(make([]byte, n)); err == nil {
			t.Errorf("accepted: %d bytes", n)
		}
	}
}

func FuzzParseSignature(f *testing.F) {
	f.Add(dcaptest.File(f, "tdx_quote_v5.bin")[702:], uint16(5))
	f.Add(dcaptest.File(f, "sgx_quote_v3_debug.bin")[432:], uint16(3))
	f.Fuzz(func(t *testing.T, section []byte, version uint16) {
		s, err := dcapquote.ParseSignature(section, version)
		if err != nil {
			return
		}
		again, err := s.Bytes(version)
		if len(section) <= dcapquote.MaxQuote && (err != nil || !bytes.Equal(again, section)) {
			t.Errorf("a signature section has two encodings: %v", err)
		}
	})
}

func FuzzParsePCK(f *testing.F) {
	c := leaf(f, "tdx_quote_v5.bin")
	id := asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}
	for _, e := range c.Extensions {
		if e.Id.Equal(id) {
			f.Add(e.Value)
		}
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		p, err := dcapquote.ParsePCK(&x509.Certificate{Extensions: []pkix.Extension{{Id: id, Value: value}}})
		if err == nil && p.SGXType > dcapquote.SGXScalableIntegrity {
			t.Errorf("got %+v", p)
		}
	})
}
