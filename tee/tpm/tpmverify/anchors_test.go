package tpmverify_test

import (
	"encoding/pem"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee/tpm/tpmverify"
)

func TestParseAnchors(t *testing.T) {
	t.Parallel()
	block := func(kind string, content byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: []byte{content}})
	}
	keys, roots, err := tpmverify.ParseAnchors(slices.Concat([]byte("# ours\n"), block("PUBLIC KEY", 1), block("CERTIFICATE", 2), block("PUBLIC KEY", 3)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][][]byte{{{1}, {3}}, {{2}}}, [][][]byte{keys, roots}); diff != "" {
		t.Error(diff)
	}
	for name, c := range map[string]struct {
		text []byte
		want string
	}{
		"empty":         {nil, "got none"},
		"no PEM":        {[]byte{0x30, 0x03}, "got none"},
		"a private key": {slices.Concat(block("CERTIFICATE", 1), block("PRIVATE KEY", 2)), "PRIVATE KEY"},
	} {
		if keys, roots, err := tpmverify.ParseAnchors(c.text); err == nil || keys != nil || roots != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %x, %x, %v; want an error with %q", name, keys, roots, err, c.want)
		}
	}
}
