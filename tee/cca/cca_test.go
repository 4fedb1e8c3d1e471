package cca

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/teetest"
)

func vectors() []string { return []string{"token", "tf-rmm", "draft-00"} }

func read(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestParseToken(t *testing.T) {
	t.Parallel()
	for _, name := range vectors() {
		raw := read(t, name+".cbor")
		token, err := ParseToken(raw)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if token.PlatformToken.Algorithm != ES384 || token.Realm.Key == nil {
			t.Errorf("%s: got %+v", name, token)
		}
		evidence, err := FromRaw(raw)
		if err != nil {
			t.Fatal(err)
		}
		e, err := ParseEvidence(evidence)
		if err != nil || !bytes.Equal(e.Token, raw) {
			t.Errorf("%s: evidence: got %x, %v", name, e, err)
		}
		teetest.EachPrefix(raw, func(cut []byte) {
			if _, err := ParseToken(cut); err == nil {
				t.Errorf("%s: accepted %d bytes of %d", name, len(cut), len(raw))
			}
		})
		for what, long := range map[string][]byte{"padded": append(bytes.Clone(raw), 0), "doubled": append(bytes.Clone(raw), raw...), "over-long": append(bytes.Clone(raw), make([]byte, MaxToken)...)} {
			if _, err := ParseToken(long); err == nil {
				t.Errorf("%s: accepted %s", name, what)
			}
			if _, err := FromRaw(long); err == nil {
				t.Errorf("%s: made evidence of %s", name, what)
			}
		}
	}
}

// TestHostileCBOR has documents that are wrong before anything of CCA is.
func TestHostileCBOR(t *testing.T) {
	t.Parallel()
	for name, raw := range map[string][]byte{
		"empty":              {},
		"another tag":        {0xD9, 0x01, 0x8E, 0xA0},
		"no tag":             {0xA0},
		"empty collection":   {0xD9, 0x01, 0x8F, 0xA0},
		"indefinite map":     {0xD9, 0x01, 0x8F, 0xBF, 0xFF},
		"huge map":           {0xD9, 0x01, 0x8F, 0xBB, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF},
		"huge string":        {0xD9, 0x01, 0x8F, 0xA1, 0x19, 0xAC, 0xCA, 0x5B, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF},
		"deep":               append([]byte{0xD9, 0x01, 0x8F}, bytes.Repeat([]byte{0x81}, 20000)...),
		"deep tags":          append([]byte{0xD9, 0x01, 0x8F}, bytes.Repeat([]byte{0xC1}, 20000)...),
		"numbers for tokens": {0xD9, 0x01, 0x8F, 0xA2, 0x19, 0xAC, 0xCA, 0x00, 0x19, 0xAC, 0xD1, 0x00},
		"texts for tokens":   {0xD9, 0x01, 0x8F, 0xA2, 0x19, 0xAC, 0xCA, 0x61, 'a', 0x19, 0xAC, 0xD1, 0x61, 'a'},
		"arrays for tokens":  {0xD9, 0x01, 0x8F, 0xA2, 0x19, 0xAC, 0xCA, 0x81, 0x01, 0x19, 0xAC, 0xD1, 0x81, 0x01},
		"duplicate label":    {0xD9, 0x01, 0x8F, 0xA2, 0x19, 0xAC, 0xCA, 0x41, 0x01, 0x19, 0xAC, 0xCA, 0x41, 0x01},
		"negative label":     {0xD9, 0x01, 0x8F, 0xA1, 0x20, 0x41, 0x01},
	} {
		if _, err := ParseToken(raw); err == nil || !strings.HasPrefix(err.Error(), "cca: ") {
			t.Errorf("%s: got %v", name, err)
		}
		if _, err := Inspect(raw); err == nil {
			t.Errorf("%s: inspected", name)
		}
	}
}

func TestEvidenceRefuses(t *testing.T) {
	t.Parallel()
	for _, in := range []string{
		``, `null`, `[]`, `{}`, `{"token":null}`, `{"token":"AQI="}`, `{"token":[256]}`, `{"token":[1],"token":[1]}`, `{"token":[1],"x":1}`, `{"Token":[1]}`,
		`{"token":[[1]]}`, `{"token":[1]} {}`, `{"token":[` + strings.Repeat("1,", MaxToken) + `1]}`, strings.Repeat(" ", MaxEvidence) + `{"token":[1]}`,
	} {
		if e, err := ParseEvidence(json.RawMessage(in)); err == nil {
			t.Errorf("%.60s: got %v", in, e)
		}
	}
	if _, err := (&Evidence{Token: make([]byte, MaxToken+1)}).JSON(); err == nil {
		t.Error("encoded too long a token")
	}
}

func TestInspect(t *testing.T) {
	t.Parallel()
	raw := read(t, "draft-00.cbor")
	evidence, err := FromRaw(raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range [][]byte{raw, evidence} {
		i, err := Inspect(data)
		if err != nil || i.TEE != tee.CCA || len(i.Odd) != 0 || i.Fields["platform_algorithm"] != "ES384" {
			t.Fatalf("got %+v, %v", i, err)
		}
		realm, ok := i.Fields["realm"].(map[string]any)
		if !ok || realm["cca-realm-profile"] != ProfileRealm {
			t.Errorf("got %v", i.Fields)
		}
	}
	odd := bytes.Replace(raw, []byte(ProfileRealm), []byte(strings.Replace(ProfileRealm, "2023", "2033", 1)), 1)
	odd = bytes.Replace(odd, []byte{0x19, 0x30, 0x03}, []byte{0x19, 0x50, 0x03}, 1) // lifecycle
	i, err := Inspect(odd)
	if err != nil || len(i.Odd) != 2 || i.Fields["platform"] == nil || i.Fields["realm"] != nil {
		t.Errorf("got %+v, %v", i, err)
	}
}

func TestLifecycle(t *testing.T) {
	t.Parallel()
	for claim, want := range map[uint16]string{
		0: "unknown", 0xFF: "unknown", 0x100: "invalid", 0x10FF: "assembly_and_test", 0x2000: "cca_platform_rot_provisioning", 0x2FFF: "invalid", 0x3000: "secured",
		0x30FF: "secured", 0x3100: "invalid", 0x4001: "non_cca_platform_rot_debug", 0x5000: "recoverable_cca_platform_rot_debug", 0x6010: "decommissioned", 0xFFFF: "invalid",
	} {
		if got := LifecycleOf(claim).String(); got != want {
			t.Errorf("%#04x: got %s, want %s", claim, got, want)
		}
	}
}

// TestAllocation holds what decoding allocates against its input, CBOR nested in
// CBOR nested in CBOR.
func TestAllocation(t *testing.T) {
	raw := read(t, "token.cbor")
	evidence, err := FromRaw(raw)
	if err != nil {
		t.Fatal(err)
	}
	if got := teetest.Allocated(t, func() error { _, err := ParseEvidence(evidence); return err }); got > 4*len(evidence) {
		t.Errorf("evidence of %d bytes: allocated %d", len(evidence), got)
	}
	if got := teetest.Allocated(t, func() error { _, err := ParseToken(raw); return err }); got > 4*len(raw) {
		t.Errorf("token of %d bytes: allocated %d", len(raw), got)
	}
	got := teetest.Allocated(t, func() error {
		e, err := ParseEvidence(evidence)
		if err == nil {
			_, err = ParseToken(e.Token)
		}
		return err
	})
	if got > 4*len(evidence) {
		t.Errorf("evidence of %d bytes and its token: allocated %d", len(evidence), got)
	}
}

func FuzzParseToken(f *testing.F) {
	for _, name := range vectors() {
		f.Add(read(f, name+".cbor"))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		token, err := ParseToken(raw)
		if _, inspectErr := Inspect(raw); err == nil && inspectErr != nil {
			t.Errorf("parsed, but not inspected: %v", inspectErr)
		}
		if err != nil {
			return
		}
		if _, err := json.Marshal(token.Claims()); err != nil {
			t.Error(err)
		}
		if token.Realm.Key == nil || len(token.Realm.Challenge) != ChallengeSize || len(token.Platform.InstanceID) != InstanceIDSize {
			t.Errorf("got %+v", token)
		}
	})
}

func FuzzParseEvidence(f *testing.F) {
	f.Add([]byte(`{"token":[1,2,3]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ParseEvidence(data)
		if err != nil {
			return
		}
		again, err := e.JSON()
		if err != nil {
			t.Fatal(err)
		}
		if e2, err := ParseEvidence(again); err != nil || !bytes.Equal(e.Token, e2.Token) {
			t.Errorf("got %v, %v", e2, err)
		}
	})
}
