package ccaattest

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/cca"
	"github.com/coffer-project/coffer/tee/internal/teetest/tsmtest"
)

// monitor answers with the published token, the challenge put in: its
// signatures are then wrong, which is the verifier's to see.
func monitor(t *testing.T) func([]byte) ([]byte, error) {
	t.Helper()
	raw, err := os.ReadFile("../testdata/draft-00.cbor")
	if err != nil {
		t.Fatal(err)
	}
	token, err := cca.ParseToken(raw)
	if err != nil {
		t.Fatal(err)
	}
	return func(challenge []byte) ([]byte, error) {
		return bytes.Replace(raw, token.Realm.Challenge, challenge, 1), nil
	}
}

func TestEvidence(t *testing.T) {
	t.Parallel()
	a := NewWithClient(tsmtest.Kernel{Provider: "arm_cca_guest\n", OutBlob: monitor(t)}.Client())
	if a.TEE() != tee.CCA {
		t.Errorf("TEE: got %s", a.TEE())
	}
	raw, err := a.Evidence(t.Context(), []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := cca.ParseEvidence(raw)
	if err != nil {
		t.Fatal(err)
	}
	token, err := cca.ParseToken(e.Token)
	if err != nil || !bytes.Equal(token.Realm.Challenge, tee.Fit([]byte("data"), 64)) {
		t.Errorf("got %+v, %v", token, err)
	}
	if got, err := a.InitData(t.Context()); err != nil || !bytes.HasPrefix(got, []byte("The quick brown fox")) || len(got) != 64 {
		t.Errorf("initdata: got %q, %v", got, err)
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	good := monitor(t)
	for name, tc := range map[string]struct {
		provider string
		token    func([]byte) ([]byte, error)
		data     []byte
		want     string
	}{
		"another TEE":     {"tdx_guest\n", good, nil, "tdx_guest"},
		"firmware error":  {"arm_cca_guest\n", func([]byte) ([]byte, error) { return nil, errors.New("busy") }, nil, "busy"},
		"no token":        {"arm_cca_guest\n", func([]byte) ([]byte, error) { return make([]byte, 99), nil }, nil, "token"},
		"another's token": {"arm_cca_guest\n", func([]byte) ([]byte, error) { return good(make([]byte, 64)) }, []byte("data"), "cca-realm-challenge"},
		"too much data":   {"arm_cca_guest\n", good, make([]byte, 65), "64 bytes"},
	} {
		if raw, err := NewWithClient(tsmtest.Kernel{Provider: tc.provider, OutBlob: tc.token}.Client()).Evidence(t.Context(), tc.data); err == nil || raw != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %.40s, %v; want an error with %q", name, raw, err, tc.want)
		}
	}
}

func TestContextEnds(t *testing.T) {
	t.Parallel()
	tsmtest.ContextEnds(t, tsmtest.Kernel{Provider: "arm_cca_guest\n", OutBlob: monitor(t)}, NewWithClient)
}
