package provenance

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
)

func TestSample(t *testing.T) {
	t.Parallel()
	doc := []byte(`{"snp_launch_measurement":["aa","bb"],"snp_smt_enabled":true}`)
	refs, err := Parse(t.Context(), Options{AllowUnsigned: []string{Sample}}, message(Sample, doc))
	if err != nil {
		t.Fatal(err)
	}
	if len(refs) != 2 || values(refs[0]) != `"aa" "bb"` || !refs[1].Scalar || refs[0].Entries[0].Source != "unsigned sample" {
		t.Errorf("got %+v", refs)
	}
	refs, err = Parse(t.Context(), Options{}, message(Sample, doc))
	refused(t, refs, err, "expected a document that is signed", true)
}

func TestMessageRefused(t *testing.T) {
	t.Parallel()
	o := Options{AllowUnsigned: []string{Sample, SWID, CoRIM}}
	for name, c := range map[string]struct{ message, want string }{
		"empty":          {"", "JSON"},
		"no object":      {"[]", "JSON"},
		"unknown field":  {`{"type":"sample","payload":"e30=","provenance":"x"}`, "provenance"},
		"twice":          {`{"type":"sample","type":"corim","payload":"e30="}`, "type"},
		"version":        {`{"version":"0.2.0","type":"sample","payload":"e30="}`, "version: expected"},
		"type":           {`{"type":"made up","payload":"e30="}`, "type: expected one of"},
		"no type":        {`{"payload":"e30="}`, "type: expected one of"},
		"no base64":      {`{"type":"sample","payload":"{}"}`, "standard base64"},
		"url base64":     {`{"type":"sample","payload":"_-8="}`, "standard base64"},
		"empty document": {`{"type":"sample","payload":"e30="}`, "expected 1 to 1024 reference values, got 0"},
		"null value":     {string(message(Sample, []byte(`{"a":null}`))), "is null"},
		"name twice":     {string(message(Sample, []byte(`{"a":1,"a":2}`))), "JSON"},
		"bad name":       {string(message(Sample, []byte(`{"a b":1}`))), "printable ASCII"},
		"too large":      {string(message(Sample, make([]byte, MaxDocument+1))), "expected at most"},
		"far too large":  {strings.Repeat(" ", MaxMessage+1), "JSON"},
		"too many":       {string(message(Sample, []byte(many(MaxReferences+1)))), "expected 1 to 1024"},
		"in-toto":        {string(message(InToto, []byte(`{}`))), "payloadType: is missing"},
	} {
		refs, err := Parse(t.Context(), o, []byte(c.message))
		if err == nil || !strings.Contains(err.Error(), c.want) || refs != nil {
			t.Errorf("%s: got %v, %v, expected %q", name, refs, err, c.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Parse(ctx, o, message(Sample, []byte(`{"a":1}`))); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func many(n int) string {
	m := make(map[string]int)
	for i := range n {
		m[fmt.Sprintf("n%d", i)] = i
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func TestOptionsCheck(t *testing.T) {
	t.Parallel()
	key := newKey(t, elliptic.P256())
	for name, c := range map[string]struct {
		change func(*Options, *Signer)
		want   string
	}{
		"good":         {func(*Options, *Signer) {}, ""},
		"in-toto":      {func(o *Options, _ *Signer) { o.AllowUnsigned = []string{InToto} }, "allow_unsigned"},
		"twice":        {func(o *Options, s *Signer) { o.Signers = append(o.Signers, *s) }, "twice"},
		"name":         {func(_ *Options, s *Signer) { s.Name = "a\nb" }, "name: expected"},
		"no name":      {func(_ *Options, s *Signer) { s.Name = "" }, "name: expected"},
		"nothing":      {func(_ *Options, s *Signer) { s.Keys = nil }, "expected public keys or root certificates"},
		"no prefixes":  {func(_ *Options, s *Signer) { s.Prefixes = nil }, "prefixes: expected at least one"},
		"empty prefix": {func(_ *Options, s *Signer) { s.Prefixes = []string{"a", ""} }, "prefixes: expected at least one"},
		"empty rename": {func(_ *Options, s *Signer) { s.Rename = []Rename{{"", "x"}} }, "rename: expected"},
		"private key":  {func(_ *Options, s *Signer) { s.Keys = []crypto.PublicKey{key} }, "expected an ECDSA, Ed25519 or RSA public key"},
		"P-224":        {func(_ *Options, s *Signer) { s.Keys = []crypto.PublicKey{&newKey(t, elliptic.P224()).PublicKey} }, "P-256, P-384 or P-521"},
		"nil key":      {func(_ *Options, s *Signer) { s.Keys = []crypto.PublicKey{(*ecdsa.PublicKey)(nil)} }, "P-256, P-384 or P-521"},
		"small RSA": {func(_ *Options, s *Signer) {
			s.Keys = []crypto.PublicKey{&rsa.PublicKey{N: big.NewInt(1 << 40), E: 65537}}
		}, "at least 2048 bits"},
		"nil root": {func(_ *Options, s *Signer) { s.Roots = []*x509.Certificate{nil} }, "got nil"},
	} {
		o := Options{}
		s := keySigner(&key.PublicKey)
		c.change(&o, &s)
		o.Signers = append(o.Signers, s)
		err := o.Check()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, expected %q", name, err, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	o := Options{AllowUnsigned: []string{Sample, SWID, CoRIM}, Now: now}
	f.Add(message(Sample, []byte(`{"a":[1,"x"],"b":{"c":1}}`)))
	f.Add(message(InToto, []byte(`{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"sig":"AA=="}]}`)))
	f.Fuzz(func(t *testing.T, data []byte) {
		refs, err := Parse(t.Context(), o, data)
		if (err == nil) == (refs == nil) {
			t.Fatalf("%v and %v", refs, err)
		}
		for i := range refs {
			if err := refs[i].Validate(); err != nil {
				t.Error(err)
			}
		}
	})
}
