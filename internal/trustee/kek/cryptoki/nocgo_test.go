//go:build !cgo

package cryptoki

import (
	"errors"
	"testing"
)

func TestLoadWithoutCgo(t *testing.T) {
	t.Parallel()
	if _, err := Load("/usr/lib/softhsm/libsofthsm2.so"); !errors.Is(err, ErrNoCgo) {
		t.Errorf("got %v", err)
	}
}
