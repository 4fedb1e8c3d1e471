package kbs

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"
)

func TestRuntimeDigestVector(t *testing.T) {
	t.Parallel()
	primary, err := runtimeJSON(vectorNonce, vectorKey, ptr(""))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"additional-evidence":"","nonce":"` + vectorNonce + `","tee-pubkey":{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"` + vectorX + `","y":"` + vectorY + `"}}`
	if string(primary) != want || len(primary) != 244 {
		t.Errorf("got %d bytes %s, want 244 bytes %s", len(primary), primary, want)
	}
	device, err := runtimeJSON(vectorNonce, vectorKey, nil)
	if err != nil || len(device) != 219 {
		t.Errorf("got %d bytes %s, %v; want 219", len(device), device, err)
	}
	for _, tc := range []struct {
		alg        string
		additional *string
		want       string
	}{
		{"", ptr(""), "80ac8f9cee08337319e7cca3e40340358d7d549bc3bc9ca9602775a15ad5afd947c901948725a64b4c1ba2da616832e8"},
		{SHA384, ptr(""), "80ac8f9cee08337319e7cca3e40340358d7d549bc3bc9ca9602775a15ad5afd947c901948725a64b4c1ba2da616832e8"},
		{SHA512, ptr(""), "bc9d19b562f5d74c5bc36b1cb48750a95a8d65bd3f093952d715ed178bf98831b7f6dd54d09846b55ec32ccdd69afc3ba2eff4b669a72edd0b4460367528b4bf"},
		{SHA384, nil, "894bf0928549cc88c784a674da861e7fbe9a7227fe7f357835b69c2f2cddeb6470d22600289e092699033dbd91422b85"},
	} {
		got, err := RuntimeDigest(tc.alg, vectorNonce, vectorKey, tc.additional)
		if err != nil || hex.EncodeToString(got) != tc.want {
			t.Errorf("%q: got %x, %v; want %s", tc.alg, got, err, tc.want)
		}
	}
	if _, err := RuntimeDigest("sm3", vectorNonce, vectorKey, nil); err == nil {
		t.Error("sm3 gave no error")
	}
	if _, err := RuntimeDigest("", vectorNonce, TEEPubKey{}, nil); err == nil {
		t.Error("the zero key gave no error")
	}
	if _, err := RuntimeDigest("", "\xff", vectorKey, nil); err == nil {
		t.Error("a nonce that is not UTF-8 gave no error")
	}
}

// The canonical form must be what any JSON implementation reads as the same
// document, and what encoding/json writes where it has no habits of its own.
func TestRuntimeJSONEscapes(t *testing.T) {
	t.Parallel()
	var every strings.Builder
	for c := range 0x100 {
		every.WriteRune(rune(c))
	}
	every.WriteString("<>&\u2028\u2029é⌘😀")
	doc, err := runtimeJSON(every.String(), testRSA(), ptr(`{"nvidia":{"a":"<\n>"}}`))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Additional string    `json:"additional-evidence"`
		Nonce      string    `json:"nonce"`
		Key        TEEPubKey `json:"tee-pubkey"`
	}
	if err := json.Unmarshal(doc, &got); err != nil {
		t.Fatal(err)
	}
	if got.Nonce != every.String() || got.Key != testRSA() || got.Additional != `{"nvidia":{"a":"<\n>"}}` {
		t.Errorf("got %+v", got)
	}
	if want := `"\u0000\u0001\u0002\u0003\u0004\u0005\u0006\u0007\b\t\n\u000b\f\r\u000e\u000f\u0010`; !bytes.Contains(doc, []byte(want)) {
		t.Errorf("%s does not contain %s", doc, want)
	}
	if want := "\x7f\u0080"; !bytes.Contains(doc, []byte(want)) {
		t.Errorf("%s has escapes that RFC 8785 does not write", doc)
	}
	if !bytes.Contains(doc, []byte("\"additional-evidence\":\"{\\\"nvidia\\\":{\\\"a\\\":\\\"<\\\\n>\\\"}}\"")) {
		t.Errorf("%s", doc)
	}
	if i, j := bytes.Index(doc, []byte(`"alg":`)), bytes.Index(doc, []byte(`"e":"AQAB","kty":"RSA","n":`)); i < 0 || j < i {
		t.Errorf("members of the RSA key are not in canonical order: %s", doc)
	}
}

// The specification's vector for canonical JSON and SHA-384 pins the hash.
func TestCanonicalVector(t *testing.T) {
	t.Parallel()
	got := sha512.Sum384([]byte(`{"a":"test","b":1,"c":{"d":"e"}}`))
	if want := "e71ce8e70d814ba6639c3612ebee0ff1f76f650f8dbb5e47157e0f3f525cd22c4597480a186427c813ca941da78870c3"; hex.EncodeToString(got[:]) != want {
		t.Errorf("got %x", got)
	}
}

func TestDigestChecksNonce(t *testing.T) {
	t.Parallel()
	a := Attestation{Version: V040, Nonce: vectorNonce, TEEKey: vectorKey, Additional: ptr("")}
	if _, err := a.Digest("", vectorNonce); err != nil {
		t.Error(err)
	}
	if got, err := a.Digest("", "another"); err == nil {
		t.Errorf("another nonce gave %x", got)
	}
	old := Attestation{Version: V020, TEEKey: vectorKey}
	got, err := old.Digest("", vectorNonce)
	want, _ := RuntimeDigest("", vectorNonce, vectorKey, nil)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("0.2.0: got %x, %v", got, err)
	}
	dev, err := a.DeviceDigest("", vectorNonce)
	if err != nil || !bytes.Equal(dev, want) {
		t.Errorf("device: got %x, %v", dev, err)
	}
}
