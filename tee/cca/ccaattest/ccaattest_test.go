package ccaattest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/faketsm"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/cca"
)

// client is a report interface whose attributes read as given.
func client(provider string, token func(challenge []byte) ([]byte, error)) configfsi.Client {
	return &faketsm.Client{Subsystems: map[string]configfsi.Client{"report": &faketsm.ReportSubsystem{
		Random:      rand.Reader,
		CheckInAttr: func(*faketsm.ReportEntry, string, []byte) error { return nil },
		MakeEntry: func() *faketsm.ReportEntry {
			return &faketsm.ReportEntry{InAttrs: map[string]*faketsm.ReportAttributeState{"inblob": {}}}
		},
		ReadAttr: func(e *faketsm.ReportEntry, attribute string) ([]byte, error) {
			switch attribute {
			case "provider":
				return []byte(provider), nil
			case "outblob":
				return token(e.InAttrs["inblob"].Value)
			}
			return nil, os.ErrNotExist
		},
	}}}
}

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
	a := NewWithClient(client("arm_cca_guest\n", monitor(t)))
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
		if raw, err := NewWithClient(client(tc.provider, tc.token)).Evidence(t.Context(), tc.data); err == nil || raw != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %.40s, %v; want an error with %q", name, raw, err, tc.want)
		}
	}
}

func TestContextEnds(t *testing.T) {
	t.Parallel()
	release, entered := make(chan struct{}), make(chan struct{}, 2)
	good := monitor(t)
	a := NewWithClient(client("arm_cca_guest\n", func(in []byte) ([]byte, error) {
		entered <- struct{}{}
		<-release
		return good(in)
	}))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := a.Evidence(ctx, nil); done <- err }()
	<-entered
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if _, err := a.InitData(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	close(release)
	if _, err := a.Evidence(t.Context(), nil); err != nil {
		t.Errorf("after the busy kernel: %v", err)
	}
}
