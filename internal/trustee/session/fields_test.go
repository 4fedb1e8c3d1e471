package session

import (
	"bytes"
	"testing"
	"time"
)

// FuzzDecode: what is in a cookie is ours, and read as if it were not.
func FuzzDecode(f *testing.F) {
	for _, nonce := range []string{"AAAA", "text", string(bytes.Repeat([]byte("x"), 300))} {
		b, err := encode(&Session{TEE: "snp", Protocol: "0.4.0", Nonce: nonce, Created: time.UnixMilli(1), Expires: time.UnixMilli(2)})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := decode(data)
		if (s == nil) == (err == nil) {
			t.Fatalf("got %v, %v", s, err)
		}
		if err != nil || s.digest != nil || s.Nonce == "" {
			return
		}
		again, err := encode(s)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decode(again)
		if err != nil || back.Nonce != s.Nonce || !back.Expires.Equal(s.Expires) {
			t.Fatalf("got %+v, %v; want %+v", back, err, s)
		}
	})
}
