package secret_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/secret"
)

func TestBytesNeverPrint(t *testing.T) {
	const marker = "hunter2-marker"
	s := secret.New([]byte(marker))
	type wrap struct {
		Key secret.Bytes
		Ptr *secret.Bytes
	}
	w := wrap{Key: s, Ptr: &s}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&out, verb+"\n", s)
		fmt.Fprintf(&out, verb+"\n", w)
	}
	j, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(j)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "key", s, "wrap", w)
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "key", s, "wrap", w)
	for _, form := range []string{marker, hex.EncodeToString([]byte(marker)), fmt.Sprintf("%d", []byte(marker))} {
		if strings.Contains(out.String(), form) {
			t.Errorf("secret printed as %q in:\n%s", form, out.String())
		}
	}
	if !strings.Contains(out.String(), secret.Redacted) {
		t.Error("no redaction printed")
	}
}

func TestBytesEqual(t *testing.T) {
	if !secret.New([]byte("a")).Equal(secret.New([]byte("a"))) || secret.New([]byte("a")).Equal(secret.New([]byte("b"))) {
		t.Error("Equal is wrong")
	}
}
