package identity

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/secret"
)

// memory is a Keeper that several directories share.
type memory struct {
	mu  sync.Mutex
	all map[string][]byte
	err error
}

func (m *memory) Secret(_ context.Context, name string, create func() ([]byte, error)) (secret.Bytes, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return secret.Bytes{}, m.err
	}
	if _, ok := m.all[name]; !ok {
		content, err := create()
		if err != nil {
			return secret.Bytes{}, err
		}
		m.all[name] = content
	}
	return secret.New(append([]byte(nil), m.all[name]...)), nil
}

// TestReplicasShareKeys: two directories that began on their own end up with
// one authority and one administrator's key.
func TestReplicasShareKeys(t *testing.T) {
	t.Parallel()
	m := &memory{all: map[string][]byte{}}
	var roots [2]string
	var keys [2]ed25519.PrivateKey
	for i := range roots {
		d, err := Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		authority := func() (*Authority, error) {
			return d.Authority([]string{"localhost"}, time.Now, slog.New(slog.DiscardHandler))
		}
		if _, err := authority(); err != nil { // each has made its own already
			t.Fatal(err)
		}
		if err := errors.Join(d.ShareAuthority(t.Context(), m, authority), d.ShareAdminKey(t.Context(), m)); err != nil {
			t.Fatal(err)
		}
		a, err := authority()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Certificate(); err != nil {
			t.Fatal(err)
		}
		roots[i] = string(a.RootPEM())
		if keys[i], err = d.AdminKey(); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{caCert, caKey, adminKey} {
			if info, err := os.Stat(d.File(f)); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", f, info, err)
			}
		}
	}
	if roots[0] != roots[1] || !keys[0].Equal(keys[1]) {
		t.Error("the replicas have different authorities or administrators")
	}
	m.err = errors.New("down")
	d, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.ShareAdminKey(t.Context(), m); err == nil {
		t.Error("want an error")
	}
	m.err, m.all["admin-key"] = nil, []byte("{}")
	if err := d.ShareAdminKey(t.Context(), m); err == nil {
		t.Error("want an error")
	}
}
