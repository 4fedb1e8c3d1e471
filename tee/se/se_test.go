package se

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
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

func filled(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }

// TestTags reads the header of s390-tools' tests; what is in it is from there
// (rust/pv/src/brcb.rs).
func TestTags(t *testing.T) {
	t.Parallel()
	header := read(t, "secure_guest.hdr")
	want, err := TagsOfImage(header)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		got  []byte
		want string
	}{
		"page list digest": {want.PageListDigest[:], "be94b5eab3c1b118c757d7db7ea0f65d"}, "address list digest": {want.AddressListDigest[:], "2858c3368b2a0af0c5ea0fde7905eb15"},
		"tweak list digest": {want.TweakListDigest[:], "4860ebcf7b9d24eb909a795356ad32c9"}, "tag": {want.Tag[:], "92309d4589b9a85b427f8753171d1520"},
	} {
		if got := hex.EncodeToString(tc.got); !strings.HasPrefix(got, tc.want) {
			t.Errorf("%s: got %s, want %s…", name, got, tc.want)
		}
	}
	again, err := ParseTags(want.Bytes())
	if err != nil || again != want {
		t.Errorf("got %+v, %v", again, err)
	}
	page := make([]byte, 0x13000)
	copy(page[0x12000:], header)
	metadata := make([]byte, 0x20000)
	copy(metadata[0xC000:], imageMagic)
	binary.BigEndian.PutUint64(metadata[0xC008:], 0x14008)
	copy(metadata[0x14008:], header)
	for name, image := range map[string][]byte{"page": page, "metadata": metadata} {
		if got, err := TagsOfImage(image); err != nil || got != want {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
	version, huge, small, far := bytes.Clone(header), bytes.Clone(header), bytes.Clone(header), bytes.Clone(metadata)
	version[11] = 1
	binary.BigEndian.PutUint32(huge[12:], 0xFFFFFFFF)
	binary.BigEndian.PutUint32(small[12:], 8)
	binary.BigEndian.PutUint64(far[0xC008:], 0xFFFFFFFFFFFFFFFF)
	shifted := make([]byte, 4096)
	copy(shifted[8:], header)
	for name, image := range map[string][]byte{"empty": nil, "cut": header[:len(header)-1], "magic": header[1:], "version": version, "huge": huge, "small": small, "far": far, "shifted": shifted} {
		if got, err := TagsOfImage(image); err == nil {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	for n := range header {
		if _, err := TagsOfImage(header[:n]); err == nil {
			t.Errorf("accepted %d bytes", n)
		}
	}
}

// TestMeasured computes the measurements of s390-tools' tests
// (rust/pv/src/uvattest/attest.rs, test).
func TestMeasured(t *testing.T) {
	t.Parallel()
	tags := Tags{[64]byte(filled(64, 1)), [64]byte(filled(64, 2)), [64]byte(filled(64, 3)), [16]byte(filled(16, 4))}
	for name, tc := range map[string]struct {
		user, nonce, additional []byte
		want                    string
	}{
		"all":        {filled(256, 7), filled(16, 8), filled(128, 9), "88794c62cce7bcf26216deb3f48f13fea6374b6d7e35bcc5c2ce68121db6f45dfc8c171856463549408bf8e7d1aca11efad0a878af97dc9e21a1fc2a32f3a675"},
		"no nonce":   {filled(256, 7), nil, filled(128, 9), "fbd4f738a390edd947cd4f11af3a2f3bab2fdf8bf89bf81beb495117f4382cf42f0730c8c7d9e3ca27fb25adfceb21224f57fdb398dcf41a83c146e6a23db760"},
		"additional": {nil, nil, filled(128, 9), "63671fbf295036eb1023ea71f7182e7d6343dc7b2da584e824d0a7d198ab9cded756c93b39050ffb764555b01f88cb82017a6a15c7e0bafc6005f1e4f78aa124"},
		"minimal":    {nil, nil, nil, "c5c34c93835d1ec23f5c2d778dfa20129b11b305601742cb2f38e0ed9894dcdb73fc8695ab6a8dbad0744073ddc81a5eaafa52e4a15af8deb8d761091922847f"},
	} {
		h := hmac.New(sha512.New, filled(64, 0x41))
		h.Write(Measured(&tags, [16]byte(filled(16, 5)), tc.user, tc.nonce, tc.additional))
		if got := hex.EncodeToString(h.Sum(nil)); got != tc.want {
			t.Errorf("%s: got %s, want %s", name, got, tc.want)
		}
	}
}

func example() *Evidence {
	return &Evidence{
		Measurement: filled(64, 1), AdditionalData: append(filled(32, 2), filled(32, 3)...), UserData: filled(64, 4), CUID: [16]byte(filled(16, 5)),
		SealedMeasurementKey: filled(92, 6), SealedNonce: filled(44, 7), Tags: Tags{Tag: [16]byte(filled(16, 8))},
	}
}

func TestEvidence(t *testing.T) {
	t.Parallel()
	e := example()
	data, err := e.JSON()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseEvidence(data)
	if diff := cmp.Diff(e, again); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	good := string(data)
	for name, in := range map[string]string{
		"empty": "", "null": "null", "array": "[]", "nothing": "{}", "cut": good[:len(good)-1], "twice": good + good, "unknown": strings.Replace(good, `"cuid"`, `"x":"","cuid"`, 1),
		"duplicate": strings.Replace(good, `"cuid"`, `"cuid":"","cuid"`, 1), "null field": strings.Replace(good, `"cuid":"`, `"cuid":null,"x":"`, 1), "case": strings.Replace(good, `"cuid"`, `"CUID"`, 1),
		"base64": strings.Replace(good, `"cuid":"`, `"cuid":"!`, 1), "short": strings.Replace(good, `"measurement":"AQEB`, `"measurement":"`, 1), "long": good + strings.Repeat(" ", MaxEvidence),
		"long user data": strings.Replace(good, `"user_data":"`, `"user_data":"AAAA`, 1), "deep": strings.Replace(good, `"cuid":"`, `"cuid":[[["`, 1),
	} {
		if e, err := ParseEvidence(json.RawMessage(in)); err == nil || !strings.Contains(err.Error(), "se: ") {
			t.Errorf("%s: got %+v, %v", name, e, err)
		}
	}
	i, err := Inspect(data)
	if err != nil || i.TEE != tee.SE || len(i.Odd) != 0 || i.Fields["image_phkh"] != strings.Repeat("02", 32) || i.Fields["attestation_phkh"] != strings.Repeat("03", 32) {
		t.Errorf("got %+v, %v", i, err)
	}
	e.AdditionalData = nil
	if data, err = e.JSON(); err != nil {
		t.Fatal(err)
	}
	if i, err = Inspect(data); err != nil || len(i.Odd) != 1 {
		t.Errorf("got %+v, %v", i, err)
	}
	if _, err := Inspect([]byte("x")); err == nil {
		t.Error("inspected nonsense")
	}
	if _, err := FromRaw([]byte("x")); err == nil {
		t.Error("made evidence of nonsense")
	}
}

func TestAllocation(t *testing.T) {
	data, err := example().JSON()
	if err != nil {
		t.Fatal(err)
	}
	if got := teetest.Allocated(t, func() error { _, err := ParseEvidence(data); return err }); got > 4*len(data) {
		t.Errorf("%d bytes: allocated %d", len(data), got)
	}
}

func FuzzParseEvidence(f *testing.F) {
	data, err := example().JSON()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(data))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ParseEvidence(data)
		if err != nil {
			return
		}
		again, err := e.JSON()
		if err != nil {
			t.Fatal(err)
		}
		e2, err := ParseEvidence(again)
		if diff := cmp.Diff(e, e2); err != nil || diff != "" {
			t.Errorf("%v %s", err, diff)
		}
	})
}

func FuzzTagsOfImage(f *testing.F) {
	f.Add(read(f, "secure_guest.hdr"))
	f.Fuzz(func(t *testing.T, image []byte) {
		if tags, err := TagsOfImage(image); err == nil && !bytes.Contains(image, tags.Tag[:]) {
			t.Errorf("got %+v", tags)
		}
	})
}
