package store

import (
	"errors"
	"testing"

	"github.com/coffer-project/coffer/internal/trustee/seal"
	"github.com/coffer-project/coffer/secret"
)

func TestProbe(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"sqlite", "postgres"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			o := dataOptions(t, kind, newTestClock().now)
			if err := Probe(t.Context(), o); err != nil {
				t.Errorf("empty: %v", err)
			}
			s := openData(t, o)
			if err := Probe(t.Context(), o); err != nil {
				t.Errorf("in use: %v", err)
			}
			other, err := seal.File(secret.New(make([]byte, seal.KeySize)))
			if err != nil {
				t.Fatal(err)
			}
			o.KEK = other
			if err := Probe(t.Context(), o); !errors.Is(err, seal.ErrWrongKEK) {
				t.Errorf("another key: %v", err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
