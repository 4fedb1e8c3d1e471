package attestationservice

import (
	"crypto/sha512"
	"encoding/hex"
	"strings"
	"testing"
)

func TestCanonicalize(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ in, want string }{
		{`{ "b": 1, "a": "test" }`, `{"a":"test","b":1}`},
		{`{"x":"\u0000\u001f\b\t\n\f\r\"\\\/<>&é€😀\u007f"}`, `{"x":"\u0000\u001f\b\t\n\f\r\"\\/<>&é€😀` + "\x7f" + `"}`},
		// By UTF-16 code units: the surrogates of U+1F600 come before U+FB33.
		{"{\"\ufb33\":1,\"\U0001f600\":2,\"1\":3,\"\\r\":4,\"\u00f6\":5,\"\u20ac\":6}", "{\"\\r\":4,\"1\":3,\"\u00f6\":5,\"\u20ac\":6,\"\U0001f600\":2,\"\ufb33\":1}"},
		{`{"n":[0,-0,1.0,1e2,1E21,1e20,0.000001,0.0000001,333333333.33333329,4.50,2e-3,123456789012345680000,-1.5,9007199254740992]}`,
			`{"n":[0,0,1,100,1e+21,100000000000000000000,0.000001,1e-7,333333333.3333333,4.5,0.002,`},
		{`{"a":[null,true,false,{},[]]}`, `{"a":[null,true,false,{},[]]}`},
	} {
		got, _, err := canonicalize([]byte(tc.in))
		if strings.Contains(tc.in, "123456789012345680000") {
			// An integer that no double holds.
			if err == nil {
				t.Errorf("%s: want an error", tc.in)
			}
			got, _, err = canonicalize([]byte(strings.Replace(tc.in, "123456789012345680000,", "", 1)))
			tc.want += "-1.5,9007199254740992]}"
		}
		if err != nil || string(got) != tc.want {
			t.Errorf("%s: got %s, %v; want %s", tc.in, got, err, tc.want)
		}
	}
	for _, bad := range []string{``, `[]`, `null`, `1`, `{"a":1,"a":2}`, `{"a":1e999}`, `{"a":9007199254740993}`, `{"a":"` + "\xff" + `"}`, `{} {}`, strings.Repeat(`{"a":`, 100) + `1` + strings.Repeat(`}`, 100)} {
		if got, _, err := canonicalize([]byte(bad)); err == nil {
			t.Errorf("%.40s: got %s, want an error", bad, got)
		}
	}
}

// The reference implementation's own vector, and the document of a handshake.
func TestRuntimeVectors(t *testing.T) {
	t.Parallel()
	const pubkey = `{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW","x":"tNohxSs01t6QA2tHxfaZxuqkPIlMk-hulsgR0bHAgK0","y":"A7aRK_Dzx0ShxvIN-K6r787V6xm68vMBiPTciwE0Ysw"}`
	for doc, want := range map[string]string{
		`{"a":"test","b":1,"c":{"d":"e"}}`: "e71ce8e70d814ba6639c3612ebee0ff1f76f650f8dbb5e47157e0f3f525cd22c4597480a186427c813ca941da78870c3",
		`{"nonce":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","tee-pubkey":` + pubkey + `,"additional-evidence":""}`: "80ac8f9cee08337319e7cca3e40340358d7d549bc3bc9ca9602775a15ad5afd947c901948725a64b4c1ba2da616832e8",
		`{"tee-pubkey":` + pubkey + `,"nonce":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}`:                          "894bf0928549cc88c784a674da861e7fbe9a7227fe7f357835b69c2f2cddeb6470d22600289e092699033dbd91422b85",
	} {
		canonical, _, err := canonicalize([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		got := sha512.Sum384(canonical)
		if hex.EncodeToString(got[:]) != want {
			t.Errorf("%s: got %x, want %s", canonical, got, want)
		}
	}
}

func FuzzCanonicalize(f *testing.F) {
	f.Add([]byte(`{"a":"test","b":1.5e-9,"c":{"d":["e",null,true]}}`))
	f.Add([]byte(`{"\ud83d\ude00":1e21,"x":-0}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		once, _, err := canonicalize(doc)
		if err != nil {
			return
		}
		twice, _, err := canonicalize(once)
		// A double above 2^53 is written as an integer, which is refused.
		if err != nil && strings.Contains(err.Error(), "2^53") {
			return
		}
		if err != nil || string(once) != string(twice) {
			t.Errorf("%q: first %s, then %s, %v", doc, once, twice, err)
		}
	})
}

func FuzzParseREST(f *testing.F) {
	f.Add([]byte(`{"verification_requests":[{"tee":"snp","evidence":"e30","runtime_data":{"structured":{"a":1}},"init_data":{"init_data_toml":""},"runtime_data_hash_algorithm":"sha384"}],"policy_ids":["default"]}`))
	f.Add([]byte(`{"verification_requests":[{"tee":"nvidia-dpu","evidence":"e30","runtime_data":{"raw":"AAAA"}}]}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		q, e := parseREST(doc)
		if e != nil {
			return
		}
		r, e := q.parse()
		if e == nil && len(r.Primary.ReportData) == 0 {
			t.Errorf("%q: accepted without report data", doc)
		}
	})
}
