package kbs

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee"
)

func TestParseRequest(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		doc  string
		want Request
	}{
		"0.4.0": {
			`{"version":"0.4.0","tee":"tdx","extra-params":{"supported-hash-algorithms":["sha256","sha384","sha512","sm3"]}}`,
			Request{Version: V040, TEE: tee.TDX, HashAlgorithms: []string{"sha256", "sha384", "sha512", "sm3"}},
		},
		"third party": {`{"version":"0.4.0","tee":"snp","extra-params":""}`, Request{Version: V040, TEE: tee.SNP}},
		"null":        {`{"version":"0.4.0","tee":"snp","extra-params":null}`, Request{Version: V040, TEE: tee.SNP}},
		"absent":      {`{"version":"0.4.0","tee":"snp"}`, Request{Version: V040, TEE: tee.SNP}},
		"old":         {`{"version":"0.1.0","tee":"azsnpvtpm","extra-params":"x"}`, Request{Version: V010, TEE: tee.AzureSNPVTPM}},
		"newer members": {
			`{"version":"0.4.0","tee":"se","new":[1,{"a":null}],"extra-params":{"attestation-policy-selector":"strict","tee-metadata":{"primary_tee":{"tee":"se","metadata":{}},"additional_tees":[{"tee":"nvidia"}]},"x":1}}`,
			Request{Version: V040, TEE: tee.SE, PolicySelector: "strict"},
		},
	} {
		got, err := ParseRequest([]byte(tc.doc))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(tc.want, *got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestParseRequestRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ doc, want string }{
		"empty":           {``, "empty or ends early"},
		"array":           {`[]`, "expected a JSON object, got array"},
		"truncated":       {`{"version":"0.4.0","tee":"snp"`, "ends early"},
		"trailing":        {`{"version":"0.4.0","tee":"snp"}{}`, "followed by more data"},
		"duplicate":       {`{"version":"0.4.0","tee":"snp","tee":"sample"}`, `member "tee" occurs twice`},
		"escaped twice":   {`{"version":"0.4.0","tee":"snp","\u0074ee":"sample"}`, `member "tee" occurs twice`},
		"nested twice":    {`{"version":"0.4.0","tee":"snp","x":[{"a":1,"a":2}]}`, `member "a" occurs twice`},
		"case":            {`{"version":"0.4.0","TEE":"snp"}`, `member "TEE" must be spelled "tee"`},
		"no version":      {`{"tee":"snp"}`, `"version" is missing`},
		"null version":    {`{"version":null,"tee":"snp"}`, `"version" is missing`},
		"version type":    {`{"version":4,"tee":"snp"}`, `"version": expected a string, got number`},
		"tee type":        {`{"version":"0.4.0","tee":["snp"]}`, "expected a string, got array"},
		"unknown tee":     {`{"version":"0.4.0","tee":"SNP"}`, `unknown TEE "SNP"`},
		"extra type":      {`{"version":"0.4.0","tee":"snp","extra-params":1}`, "expected an object or a string, got number"},
		"hashes type":     {`{"version":"0.4.0","tee":"snp","extra-params":{"supported-hash-algorithms":[1]}}`, "expected an array of strings"},
		"hashes":          {`{"version":"0.4.0","tee":"snp","extra-params":{"supported-hash-algorithms":[` + strings.Repeat(`"a",`, 16) + `"a"]}}`, "17 entries"},
		"selector":        {`{"version":"0.4.0","tee":"snp","extra-params":{"attestation-policy-selector":"` + strings.Repeat("x", 257) + `"}}`, "longer than 256"},
		"other primary":   {`{"version":"0.4.0","tee":"snp","extra-params":{"tee-metadata":{"primary_tee":{"tee":"se"}}}}`, `expected "snp" as in the request, got "se"`},
		"metadata":        {`{"version":"0.4.0","tee":"snp","extra-params":{"tee-metadata":{}}}`, `"primary_tee" is missing`},
		"deep":            {`{"version":"0.4.0","tee":"snp","x":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`, "nested more than 32 deep"},
		"very deep":       {strings.Repeat("[", MaxRequestBytes), "nested more than 32 deep"},
		"size":            {`{"version":"0.4.0","tee":"snp","x":"` + strings.Repeat("x", MaxRequestBytes) + `"}`, "the limit is 65536"},
		"utf8":            {"{\"version\":\"0.4.0\",\"tee\":\"snp\",\"x\":\"\xff\"}", "not valid UTF-8"},
		"comma":           {`{"version":"0.4.0","tee":"snp",}`, "invalid character"},
		"control in name": {`{"version":"0.4.0","tee":"s` + "\\u001b[31m" + `np"}`, `unknown TEE "s [31mnp"`},
	} {
		got, err := ParseRequest([]byte(tc.doc))
		if err == nil || got != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, %v; want an error with %q", name, got, err, tc.want)
		}
	}
}

func TestVersionMismatch(t *testing.T) {
	t.Parallel()
	for _, v := range []string{"0.5.0", "0.4", "=0.4.0", "", "0.4.0 "} {
		_, err := ParseRequest([]byte(`{"version":"` + v + `","tee":"snp"}`))
		ve, ok := errors.AsType[*VersionError](err)
		if !ok || ve.Got != v {
			t.Errorf("%q: got %v", v, err)
			continue
		}
		if want := "KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is " + v; err.Error() != want {
			t.Errorf("got %q, want %q", err, want)
		}
	}
}

func TestRequestMarshal(t *testing.T) {
	t.Parallel()
	r := Request{Version: V040, TEE: tee.TDX, HashAlgorithms: []string{"sha256", "sha384"}}
	got, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"version":"0.4.0","tee":"tdx","extra-params":{"supported-hash-algorithms":["sha256","sha384"]}}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
}

func TestChallenge(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		c    Challenge
		wire string
	}{
		{Challenge{Nonce: vectorNonce}, `{"nonce":"` + vectorNonce + `","extra-params":""}`},
		{Challenge{Nonce: "{\"request_blob\":\"<&>\"}", HashAlgorithm: SHA512}, `{"nonce":"{\"request_blob\":\"<&>\"}","extra-params":{"selected-hash-algorithm":"sha512"}}`},
	} {
		got, err := marshal(tc.c)
		if err != nil || string(got) != tc.wire {
			t.Errorf("marshal = %s, %v; want %s", got, err, tc.wire)
		}
		back, err := ParseChallenge(got)
		if err != nil || *back != tc.c {
			t.Errorf("ParseChallenge = %v, %v; want %v", back, err, tc.c)
		}
	}
	got, err := ParseChallenge([]byte(`{"nonce":"x","extra-params":{"selected-hash-algorithm":"SHA256"},"y":1}`))
	if err != nil || got.HashAlgorithm != SHA256 {
		t.Errorf("got %v, %v", got, err)
	}
	for name, tc := range map[string]struct{ doc, want string }{
		"html":     {`<html>`, "invalid character"},
		"case":     {`{"nonce":"0","eXtrA-pArAms":{}}`, `must be spelled "extra-params"`},
		"two":      {`{"nonce":"0","Nonce":"1"}`, `must be spelled "nonce"`},
		"no nonce": {`{"extra-params":""}`, `"nonce" is missing`},
		"empty":    {`{"nonce":"","extra-params":""}`, "expected 1 to"},
		"hash":     {`{"nonce":"x","extra-params":{"selected-hash-algorithm":"sm3"}}`, `unsupported hash algorithm "sm3"`},
		"long":     {`{"nonce":"` + strings.Repeat("x", maxNonceBytes+1) + `"}`, "expected 1 to 131072"},
	} {
		if got, err := ParseChallenge([]byte(tc.doc)); err == nil || got != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, %v; want an error with %q", name, got, err, tc.want)
		}
	}
}

const (
	keyEC  = `{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW","x":"` + vectorX + `","y":"` + vectorY + `"}`
	keyEC2 = `{"y":"` + vectorY + `","x":"` + vectorX + `","kid":"dropped","alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC"}`
)

func ptr(s string) *string { return &s }

func TestParseAttestation(t *testing.T) {
	t.Parallel()
	rsaKey := `{"kty":"RSA","alg":"RSA1_5","n":"` + testRSA().N + `","e":"AQAB"}`
	for name, tc := range map[string]struct {
		version Version
		doc     string
		want    Attestation
	}{
		"0.4.0": {
			V040, `{"init-data":{"format":"toml","body":"a = 1\n"},"runtime-data":{"nonce":"N","tee-pubkey":` + keyEC + `},"tee-evidence":{"primary_evidence":{"a":[1]},"additional_evidence":"{\"nvidia\":{}}"}}`,
			Attestation{InitData: &InitData{"toml", "a = 1\n"}, Nonce: "N", TEEKey: vectorKey, Evidence: json.RawMessage(`{"a":[1]}`), Additional: ptr(`{"nvidia":{}}`)},
		},
		"0.4.0 without": {
			V040, `{"init-data":null,"new":1,"runtime-data":{"nonce":"N","tee-pubkey":` + keyEC2 + `},"tee-evidence":{"primary_evidence":"x","additional_evidence":""}}`,
			Attestation{Nonce: "N", TEEKey: vectorKey, Evidence: json.RawMessage(`"x"`), Additional: ptr("")},
		},
		"0.3.0": {
			V030, `{"tee-pubkey":` + keyEC + `,"tee-evidence":{"primary_evidence":{},"additional_evidence":""}}`,
			Attestation{TEEKey: vectorKey, Evidence: json.RawMessage(`{}`), Additional: ptr("")},
		},
		"0.2.0": {
			V020, `{"tee-pubkey":` + keyEC + `,"tee-evidence":{"a":1}}`,
			Attestation{TEEKey: vectorKey, Evidence: json.RawMessage(`{"a":1}`)},
		},
		"0.1.1": {
			V011, `{"tee-pubkey":` + rsaKey + `,"tee-evidence":{"a":1}}`,
			Attestation{TEEKey: testRSAKey(AlgRSA15), Evidence: json.RawMessage(`{"a":1}`)},
		},
		"0.1.0": {
			V010, `{"tee-pubkey":` + rsaKey + `,"tee-evidence":"{\"a\":1}"}`,
			Attestation{TEEKey: testRSAKey(AlgRSA15), Evidence: json.RawMessage(`{"a":1}`)},
		},
	} {
		got, err := ParseAttestation(tc.version, []byte(tc.doc))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		tc.want.Version = tc.version
		if diff := cmp.Diff(tc.want, *got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestParseAttestationRefuses(t *testing.T) {
	t.Parallel()
	const good = `{"runtime-data":{"nonce":"N","tee-pubkey":` + keyEC + `},"tee-evidence":{"primary_evidence":{},"additional_evidence":""}}`
	if _, err := ParseAttestation(V040, []byte(good)); err != nil {
		t.Fatal(err)
	}
	r := func(old, new string) string {
		s := strings.Replace(good, old, new, 1)
		if s == good {
			t.Fatalf("%q does not occur", old)
		}
		return s
	}
	for name, tc := range map[string]struct {
		version   Version
		doc, want string
	}{
		"unknown version":    {"0.9.0", good, "Version Mismatch"},
		"old form":           {V040, `{"tee-pubkey":` + keyEC + `,"tee-evidence":{}}`, `"runtime-data" is missing`},
		"new form":           {V020, good, `"tee-pubkey" is missing`},
		"no nonce":           {V040, r(`"nonce":"N",`, ``), `"nonce" is missing`},
		"empty nonce":        {V040, r(`"N"`, `""`), "expected 1 to"},
		"no key":             {V040, r(`,"tee-pubkey":`+keyEC, ``), `"tee-pubkey" is missing`},
		"no evidence":        {V040, r(`"primary_evidence":{},`, ``), `"primary_evidence" is missing`},
		"evidence underline": {V040, r(`"tee-evidence"`, `"tee_evidence"`), `"tee-evidence" is missing`},
		"additional type":    {V040, r(`"additional_evidence":""`, `"additional_evidence":{}`), "expected a string, got object"},
		"evidence string":    {V010, `{"tee-pubkey":` + keyEC + `,"tee-evidence":{}}`, "expected a string, got object"},
		"evidence broken":    {V010, `{"tee-pubkey":` + keyEC + `,"tee-evidence":"{"}`, "tee-evidence: document is empty or ends early"},
		"evidence duplicate": {V010, `{"tee-pubkey":` + keyEC + `,"tee-evidence":"{\"a\":1,\"a\":2}"}`, "occurs twice"},
		"format":             {V040, r(`{"runtime-data"`, `{"init-data":{"format":"yaml","body":""},"runtime-data"`), `got "yaml"`},
		"body":               {V040, r(`{"runtime-data"`, `{"init-data":{"format":"toml"},"runtime-data"`), `"body" is missing`},
		"init-data type":     {V040, r(`{"runtime-data"`, `{"init-data":"x","runtime-data"`), "expected a JSON object, got string"},
		"init-data case":     {V040, r(`{"runtime-data"`, `{"Init-Data":null,"runtime-data"`), "must be spelled"},
		"size":               {V040, r(`{"runtime-data"`, `{"x":"`+strings.Repeat("x", MaxAttestationBytes)+`","runtime-data"`), "the limit is 8388608"},
	} {
		got, err := ParseAttestation(tc.version, []byte(tc.doc))
		if err == nil || got != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, %v; want an error with %q", name, got, err, tc.want)
		}
	}
}

func TestAttestationMarshal(t *testing.T) {
	t.Parallel()
	a := Attestation{Version: V040, InitData: &InitData{"toml", "<a>\n"}, Nonce: "N", TEEKey: vectorKey, Evidence: json.RawMessage(`{"q":1}`), Additional: ptr("")}
	got, err := marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"init-data":{"format":"toml","body":"<a>\n"},"runtime-data":{"nonce":"N","tee-pubkey":` + keyEC + `},"tee-evidence":{"primary_evidence":{"q":1},"additional_evidence":""}}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	back, err := ParseAttestation(V040, got)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(a, *back); diff != "" {
		t.Error(diff)
	}
	a.Version = V020
	if _, err := marshal(a); err == nil {
		t.Error("an attestation of an older version was written in the new form")
	}
}

func TestDevices(t *testing.T) {
	t.Parallel()
	a := Attestation{Additional: ptr(`{"nvidia":{"device_evidence_list":[]},"sampledevice":{}}`)}
	got, err := a.Devices()
	if err != nil {
		t.Fatal(err)
	}
	want := map[tee.Name]json.RawMessage{tee.NVIDIA: json.RawMessage(`{"device_evidence_list":[]}`), tee.SampleDevice: json.RawMessage(`{}`)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, none := range []*string{nil, ptr("")} {
		a.Additional = none
		if got, err := a.Devices(); err != nil || len(got) != 0 {
			t.Errorf("got %v, %v", got, err)
		}
	}
	for _, bad := range []string{`[]`, `{`, `{"gpu":{}}`, `{"nvidia":1,"nvidia":2}`, `{"az-snp-vtpm":1,"azsnpvtpm":2}`, ` `} {
		a.Additional = &bad
		if got, err := a.Devices(); err == nil {
			t.Errorf("%s: got %v", bad, got)
		}
	}
}

func TestTokenResponse(t *testing.T) {
	t.Parallel()
	got, err := ParseTokenResponse([]byte(`{"token":"e30.e30.AAAA","x":1}`))
	if err != nil || got.Token != "e30.e30.AAAA" {
		t.Errorf("got %v, %v", got, err)
	}
	for name, tc := range map[string]struct{ doc, want string }{
		"missing":    {`{}`, `"token" is missing`},
		"two parts":  {`{"token":"e30.e30"}`, "3 parts, got 2"},
		"five parts": {`{"token":"e30.e30.e30.e30.e30"}`, "3 parts, got 5"},
		"unsigned":   {`{"token":"e30.e30."}`, "not unpadded base64url"},
		"header":     {`{"token":"e30.e30.AA\r\nX: y"}`, "not unpadded base64url"},
		"newline":    {`{"token":"e30.e30.AA\nAA"}`, "not unpadded base64url"},
		"size":       {`{"token":"e30.e30.` + strings.Repeat("AAAA", MaxTokenBytes/4) + `"}`, "the limit is"},
	} {
		if got, err := ParseTokenResponse([]byte(tc.doc)); err == nil || got != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, %v; want an error with %q", name, got, err, tc.want)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(`{"version":"0.4.0","tee":"se","extra-params":{"supported-hash-algorithms":["sha512"],"attestation-policy-selector":"x","tee-metadata":{"primary_tee":{"tee":"se"}}}}`))
	f.Add([]byte(`{"version":"0.1.0","tee":"azsnpvtpm","extra-params":""}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseRequest(data)
		if (r == nil) == (err == nil) {
			t.Fatalf("got %v, %v", r, err)
		}
		if err != nil {
			return
		}
		out, err := marshal(*r)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseRequest(out)
		if err != nil {
			// Text grows when it is escaped.
			if len(data) > MaxRequestBytes/8 {
				return
			}
			t.Fatalf("%v\n%s", err, out)
		}
		if len(r.HashAlgorithms) == 0 {
			r.HashAlgorithms = nil
		}
		if diff := cmp.Diff(r, back); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzParseAttestation(f *testing.F) {
	f.Add("0.4.0", []byte(`{"init-data":{"format":"toml","body":"a"},"runtime-data":{"nonce":"N","tee-pubkey":`+keyEC+`},"tee-evidence":{"primary_evidence":{},"additional_evidence":"{\"nvidia\":1}"}}`))
	f.Add("0.1.0", []byte(`{"tee-pubkey":`+keyEC+`,"tee-evidence":"{}"}`))
	f.Add("0.2.0", []byte(`{"tee-pubkey":`+keyEC2+`,"tee-evidence":{}}`))
	f.Fuzz(func(t *testing.T, version string, data []byte) {
		a, err := ParseAttestation(Version(version), data)
		if (a == nil) == (err == nil) {
			t.Fatalf("got %v, %v", a, err)
		}
		if err != nil {
			return
		}
		_, _ = a.Devices()
		if _, err := a.Digest("", a.Nonce); err != nil {
			t.Fatal(err)
		}
		if a.Version != V040 {
			return
		}
		out, err := marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseAttestation(V040, out)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		// RawMessage is compacted when it is written.
		back.Evidence, a.Evidence = nil, nil
		if diff := cmp.Diff(a, back); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzParseChallenge(f *testing.F) {
	f.Add([]byte(`{"nonce":"x","extra-params":{"selected-hash-algorithm":"SHA256"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := ParseChallenge(data); (c == nil) == (err == nil) {
			t.Fatalf("got %v, %v", c, err)
		}
		if r, err := ParseTokenResponse(data); (r == nil) == (err == nil) {
			t.Fatalf("got %v, %v", r, err)
		}
	})
}
