package pemchain

import (
	"bytes"
	"encoding/pem"
	"strings"
	"testing"
)

func block(n int) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: bytes.Repeat([]byte{7}, n)}))
}

func TestSplit(t *testing.T) {
	good := block(100) + block(3)
	for name, text := range map[string]string{
		"plain": good, "no last line end": strings.TrimSuffix(good, "\n"), "NUL": good + "\x00", "both": strings.TrimSuffix(good, "\n") + "\x00",
		"DOS": strings.ReplaceAll(good, "\n", "\r\n"),
	} {
		got, err := Split([]byte(text))
		if err != nil || len(got) != 2 || len(got[0]) != 100 || len(got[1]) != 3 {
			t.Errorf("%s: %v, %d certificates", name, err, len(got))
		}
	}
	for name, text := range map[string]string{
		"nothing": "", "only NUL": "\x00", "text before": "x\n" + good, "text between": block(1) + "x\n" + block(2), "text after": good + "x",
		"two NULs": good + "\x00\x00", "empty line": good + "\n", "a key": strings.ReplaceAll(good, "CERTIFICATE", "PRIVATE KEY"),
		"headers": "-----BEGIN CERTIFICATE-----\nA: b\n\nBwc=\n-----END CERTIFICATE-----\n", "long lines": "-----BEGIN CERTIFICATE-----\n" + strings.Repeat("BwcH", 20) + "\n-----END CERTIFICATE-----\n",
		"loose bits": strings.Replace(block(4), "BwcHBw==", "BwcHBx==", 1), "mixed ends": strings.Replace(good, "\n", "\r\n", 1),
		"too many": strings.Repeat(block(1), MaxCertificates+1), "too long": strings.Repeat("x", MaxBytes+1), "cut": good[:len(good)-5],
	} {
		if got, err := Split([]byte(text)); err == nil {
			t.Errorf("%s: accepted, %d certificates", name, len(got))
		}
	}
}

func FuzzSplit(f *testing.F) {
	f.Add([]byte(block(100) + block(3)))
	f.Fuzz(func(t *testing.T, text []byte) {
		ders, err := Split(text)
		if err != nil {
			return
		}
		var again []byte
		for _, der := range ders {
			again = append(again, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		if !bytes.Equal(bytes.TrimSuffix(again, []byte("\n")), bytes.TrimSuffix(bytes.ReplaceAll(bytes.TrimSuffix(text, []byte{0}), []byte("\r\n"), []byte("\n")), []byte("\n"))) {
			t.Error("another spelling was accepted")
		}
	})
}
