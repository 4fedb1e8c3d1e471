// Package swtpmtest gives tests a software TPM of their own.
package swtpmtest

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/coffer-project/coffer/tee/internal/swtpm"
)

// Start runs a TPM with fresh state until the test has ended. It skips the test
// where swtpm is not installed, unless COFFER_REQUIRE_SERVERS is 1.
func Start(t *testing.T) *swtpm.TPM {
	t.Helper()
	s, err := swtpm.Start(context.Background(), t.TempDir())
	switch {
	case errors.Is(err, swtpm.ErrAbsent) && os.Getenv("COFFER_REQUIRE_SERVERS") != "1":
		t.Skip(err)
	case err != nil:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
