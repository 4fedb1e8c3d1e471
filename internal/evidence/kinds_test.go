package evidence

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/tee"
)

// A file of trust anchors that holds none must not make a verifier that trusts
// any key.
func TestAnchorsWithoutKeys(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "anchors")
	if err := os.WriteFile(file, []byte{0x30, 0x03, 1, 2, 3}, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []tee.Name{tee.TPM, tee.CCA} {
		k, err := find(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.verifier(Options{Anchors: []string{file}}); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: got %v, want an error that names %s", name, err, file)
		}
		if _, err := k.verifier(Options{Anchors: []string{file + ".none"}}); err == nil || !strings.Contains(err.Error(), "trust anchor: ") {
			t.Errorf("%s: a file that does not exist: got %v", name, err)
		}
	}
}
