package provenance

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
)

// PAE with the example of the DSSE specification (protocol.md, "Test Vectors").
func TestPAE(t *testing.T) {
	t.Parallel()
	if got := string(dsse.PAE("http://example.com/HelloWorld", []byte("hello world"))); got != "DSSEv1 29 http://example.com/HelloWorld 11 hello world" {
		t.Errorf("got %q", got)
	}
}

func signPAE(t testing.TB, key crypto.Signer, typ string, payload []byte) []byte {
	t.Helper()
	pae := dsse.PAE(typ, payload)
	var h crypto.Hash
	switch k := key.(type) {
	case ed25519.PrivateKey:
		return ed25519.Sign(k, pae)
	case *ecdsa.PrivateKey:
		h = map[elliptic.Curve]crypto.Hash{elliptic.P256(): crypto.SHA256, elliptic.P384(): crypto.SHA384, elliptic.P521(): crypto.SHA512}[k.Curve]
	default:
		h = crypto.SHA256
	}
	var sum []byte
	switch h {
	case crypto.SHA256:
		s := sha256.Sum256(pae)
		sum = s[:]
	case crypto.SHA384:
		s := sha512.Sum384(pae)
		sum = s[:]
	default:
		s := sha512.Sum512(pae)
		sum = s[:]
	}
	sig, err := key.Sign(rand.Reader, sum, h)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func envelope(t testing.TB, key crypto.Signer, statement string) []byte {
	t.Helper()
	return rawEnvelope(t, payloadType, []byte(statement), signPAE(t, key, payloadType, []byte(statement)))
}

func rawEnvelope(t testing.TB, typ string, payload []byte, sigs ...[]byte) []byte {
	t.Helper()
	e := dsse.Envelope{PayloadType: typ, Payload: base64.StdEncoding.EncodeToString(payload), Signatures: []dsse.Signature{}}
	for _, s := range sigs {
		e.Signatures = append(e.Signatures, dsse.Signature{KeyID: "any", Sig: base64.StdEncoding.EncodeToString(s)})
	}
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func provenanceOf(subject, predicateType, predicate string) string {
	return fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[%s],"predicateType":%q,"predicate":%s}`, subject, predicateType, predicate)
}

func subjectJSON(name string) string {
	return fmt.Sprintf(`{"name":%q,"digest":{"sha256":"%s","sha384":"%s","gitCommit":"x"},"uri":"x"}`, name, strings.Repeat("ab", 32), strings.Repeat("CD", 48))
}

const slsaPredicate = `{"buildDefinition":{"buildType":"x","externalParameters":{}},"runDetails":{"builder":{"id":"https://builder.example/1"},"metadata":{}}}`

func TestInToto(t *testing.T) {
	t.Parallel()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	own := provenanceOf(subjectJSON("guest"), ReferenceValues, `{"values":{"snp_launch_measurement":["aa","bb"],"snp_smt_enabled":true},"expires":"2025-07-01T00:00:00Z"}`)
	for name, key := range map[string]crypto.Signer{
		"P-256": newKey(t, elliptic.P256()), "P-384": newKey(t, elliptic.P384()), "P-521": newKey(t, elliptic.P521()), "RSA": rsaKey, "Ed25519": ed,
	} {
		o := Options{Signers: []Signer{keySigner(&newKey(t, elliptic.P256()).PublicKey), {Name: "ci", Keys: []crypto.PublicKey{key.Public()}, Prefixes: []string{"snp_"}}}, Now: now}
		refs, err := Parse(t.Context(), o, message(InToto, envelope(t, key, own)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		e := refs[0].Entries[0]
		if len(refs) != 2 || values(refs[0]) != `"aa" "bb"` || !refs[1].Scalar || !e.Expires.Equal(time.Date(2025, 7, 1, 0, 0, 0, 0, time.UTC)) ||
			!strings.HasPrefix(e.Source, "signer ci: in-toto, "+ReferenceValues+", key sha256:") || e.Description != "guest@sha256:"+strings.Repeat("ab", 32) {
			t.Errorf("%s: got %+v", name, refs)
		}
	}
}

func TestRSAPSS(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte("x"))
	sig, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, sum[:], nil)
	if err != nil {
		t.Fatal(err)
	}
	if !verify(&key.PublicKey, []byte("x"), sig) || verify(&key.PublicKey, []byte("y"), sig) {
		t.Error("RSA-PSS")
	}
}

func TestSLSA(t *testing.T) {
	t.Parallel()
	key := newKey(t, elliptic.P256())
	s := keySigner(&key.PublicKey)
	s.Builders = []string{"https://builder.example/1"}
	s.Rename = []Rename{{"guest-", "tpm_"}}
	doc := envelope(t, key, provenanceOf(subjectJSON("guest-pcr11")+","+subjectJSON("other"), SLSAProvenance, slsaPredicate))
	refs, err := Parse(t.Context(), Options{Signers: []Signer{s}, Now: now}, message(InToto, doc))
	if err != nil {
		t.Fatal(err)
	}
	r := byName(t, refs, "tpm_pcr11")
	if len(refs) != 2 || values(r) != `"`+strings.Repeat("ab", 32)+`" "`+strings.Repeat("cd", 48)+`"` || r.Scalar || !r.Entries[0].Expires.IsZero() ||
		!strings.Contains(r.Entries[0].Source, "by https://builder.example/1") {
		t.Errorf("got %+v", refs)
	}
	s.Builders = []string{"https://builder.example/2"}
	refs, err = Parse(t.Context(), Options{Signers: []Signer{s}, Now: now}, message(InToto, doc))
	refused(t, refs, err, "builder: id: expected https://builder.example/2", true)
}

func TestInTotoRefused(t *testing.T) {
	t.Parallel()
	key, other := newKey(t, elliptic.P256()), newKey(t, elliptic.P256())
	good := provenanceOf(subjectJSON("guest"), ReferenceValues, `{"values":{"a":1}}`)
	st := func(s string) []byte { return envelope(t, key, s) }
	own := func(p string) []byte { return st(provenanceOf(subjectJSON("guest"), ReferenceValues, p)) }
	subj := func(s string) []byte { return st(provenanceOf(s, SLSAProvenance, slsaPredicate)) }
	sig := signPAE(t, key, payloadType, []byte(good))
	for name, c := range map[string]struct {
		doc       []byte
		want      string
		untrusted bool
	}{
		"another key":               {envelope(t, other, good), "no configured key", true},
		"altered":                   {rawEnvelope(t, payloadType, []byte(strings.Replace(good, `"a":1`, `"a":2`, 1)), sig), "no configured key", true},
		"no signature":              {rawEnvelope(t, payloadType, []byte(good)), "signatures: expected 1 to 16", false},
		"many signatures":           {rawEnvelope(t, payloadType, []byte(good), make([][]byte, 17)...), "signatures: expected 1 to 16", false},
		"another payload type":      {rawEnvelope(t, "text/plain", []byte(good), signPAE(t, key, "text/plain", []byte(good))), "payloadType: expected", false},
		"signature of another type": {rawEnvelope(t, payloadType, []byte(good), signPAE(t, key, "text/plain", []byte(good))), "no configured key", true},
		"envelope twice":            {[]byte(strings.Replace(string(st(good)), `{"payloadType"`, `{"payloadType":"x","payloadType"`, 1)), "JSON", false},
		"payload base64":            {[]byte(`{"payloadType":"` + payloadType + `","payload":"!","signatures":[{"sig":"AA=="}]}`), "expected base64", false},
		"signature base64":          {[]byte(`{"payloadType":"` + payloadType + `","payload":"AA==","signatures":[{"sig":"!"}]}`), "expected base64", false},
		"no sig":                    {[]byte(`{"payloadType":"` + payloadType + `","payload":"AA==","signatures":[{}]}`), "sig: is missing", false},
		"no statement":              {st(`[]`), "statement", false},
		"statement twice":           {st(`{"_type":"a","_type":"b"}`), "statement", false},
		"statement v0.1":            {st(strings.Replace(good, "Statement/v1", "Statement/v0.1", 1)), "_type: expected", false},
		"no subject":                {st(provenanceOf("", ReferenceValues, `{"values":{"a":1}}`)), "subject: expected 1 to", false},
		"no predicate":              {st(`{"_type":"https://in-toto.io/Statement/v1","subject":[` + subjectJSON("a") + `],"predicateType":"x"}`), "expected a predicate", false},
		"another predicate":         {st(provenanceOf(subjectJSON("a"), "https://slsa.dev/provenance/v0.2", "{}")), "predicateType: expected", false},
		"unknown field":             {own(`{"values":{"a":1},"expired":"2025-07-01T00:00:00Z"}`), "expired", false},
		"no values":                 {own(`{"values":{}}`), "got 0", false},
		"expired":                   {own(`{"values":{"a":1},"expires":"2025-06-01T00:00:00Z"}`), "expired at 2025-06-01", false},
		"no time":                   {own(`{"values":{"a":1},"expires":"tomorrow"}`), "expires", false},
		"null":                      {own(`{"values":{"a":null}}`), "is null", false},
		"no digest":                 {subj(`{"name":"a","digest":{}}`), "expected a name, and a digest", false},
		"no name":                   {subj(`{"digest":{"sha256":"` + strings.Repeat("ab", 32) + `"}}`), "name: is missing", false},
		"empty name":                {subj(`{"name":"","digest":{"sha256":"` + strings.Repeat("ab", 32) + `"}}`), "expected a name, and a digest", false},
		"git only":                  {subj(`{"name":"a","digest":{"gitCommit":"abcd"}}`), "expected a name, and a digest", false},
		"short digest":              {subj(`{"name":"a","digest":{"sha256":"abcd"}}`), "expected 32 bytes in hex", false},
		"no builder":                {st(provenanceOf(subjectJSON("a"), SLSAProvenance, `{"runDetails":{}}`)), "builder: is missing", false},
		"no run":                    {st(provenanceOf(subjectJSON("a"), SLSAProvenance, `{}`)), "runDetails: is missing", false},
		"bad name":                  {subj(subjectJSON("a b")), "printable ASCII", false},
	} {
		refs, err := Parse(t.Context(), Options{Signers: []Signer{keySigner(&key.PublicKey)}, Now: now}, message(InToto, c.doc))
		t.Run(name, func(t *testing.T) { refused(t, refs, err, c.want, c.untrusted) })
	}
	// Prefixes hold each signer to its own names.
	s := keySigner(&key.PublicKey)
	s.Prefixes = []string{"tdx_", "b"}
	refs, err := Parse(t.Context(), Options{Signers: []Signer{s}, Now: now}, message(InToto, own(`{"values":{"b1":1,"a":1}}`)))
	refused(t, refs, err, `may set references that begin with tdx_, b, got "a"`, true)
}

func FuzzInToto(f *testing.F) {
	// Seeds are the same in every process: the key is fixed, its signatures too.
	key := ed25519.NewKeyFromSeed(filled(7, 32))
	f.Add([]byte(provenanceOf(subjectJSON("a"), SLSAProvenance, slsaPredicate)))
	f.Add([]byte(provenanceOf(subjectJSON("a"), ReferenceValues, `{"values":{"a":[1]},"expires":"2030-01-01T00:00:00Z"}`)))
	nobody := Options{Signers: []Signer{keySigner(&newKey(f, elliptic.P256()).PublicKey)}, Now: now}
	by := keySigner(key.Public())
	o := Options{Signers: []Signer{by}, Now: now}
	f.Add(envelope(f, key, provenanceOf(subjectJSON("a"), SLSAProvenance, slsaPredicate)))
	f.Fuzz(func(t *testing.T, data []byte) {
		if d, err := parseInToto(&nobody, data); err == nil {
			t.Errorf("a signature that nobody made was accepted: %+v", d)
		}
		d, err := statement(&by, "key", data)
		if err != nil {
			return
		}
		refs, err := o.finish(InToto, d)
		if err == nil && len(refs) == 0 {
			t.Error("nothing, without an error")
		}
		for i := range refs {
			if err := refs[i].Validate(); err != nil {
				t.Error(err)
			}
		}
	})
}
