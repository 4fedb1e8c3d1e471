package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func open(t *testing.T) Dir {
	t.Helper()
	d, err := Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestKeysAreKept(t *testing.T) {
	t.Parallel()
	d := open(t)
	k1, err := d.KEK("", 32)
	if err != nil {
		t.Fatal(err)
	}
	k2, err := d.KEK(d.File(kek), 32)
	if err != nil || !k1.Equal(k2) {
		t.Errorf("KEK differs: %v", err)
	}
	if d.LegacyTokenKey() != nil {
		t.Error("a token key that was never there")
	}
	a1, err := d.AdminKey()
	if err != nil {
		t.Fatal(err)
	}
	a2, err := d.AdminKey()
	if err != nil || !a1.Equal(a2) {
		t.Errorf("admin key differs: %v", err)
	}
	der, _ := x509.MarshalPKIXPublicKey(a1.Public())
	pub := filepath.Join(t.TempDir(), "admin.pub")
	if err := os.WriteFile(pub, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
	pubs, err := AdminPublicKeys([]string{pub})
	if err != nil || !pubs[0].Equal(a1.Public().(ed25519.PublicKey)) {
		t.Errorf("public key: %v", err)
	}
	files, _ := os.ReadDir(d.path)
	for _, f := range files {
		if info, _ := f.Info(); info.Mode().Perm() != 0o600 || strings.HasPrefix(f.Name(), ".") {
			t.Errorf("%s: mode %v", f.Name(), info.Mode())
		}
	}
}

func TestConcurrentCreation(t *testing.T) {
	t.Parallel()
	d := open(t)
	var wg sync.WaitGroup
	keys := make([]string, 16)
	for i := range keys {
		wg.Go(func() {
			k, err := d.KEK("", 32)
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = string(k.Expose())
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] {
			t.Fatal("two processes got different keys")
		}
	}
}

func TestBadFiles(t *testing.T) {
	t.Parallel()
	d := open(t)
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(d.File(name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write(kek, strings.Repeat("ab", 32), 0o644)
	if _, err := d.KEK("", 32); err == nil || !strings.Contains(err.Error(), "others can read") {
		t.Errorf("readable key: %v", err)
	}
	if err := os.Chmod(d.File(kek), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.KEK("", 32); err != nil {
		t.Error(err)
	}
	write(kek, "abcd", 0o600)
	if _, err := d.KEK("", 32); err == nil || strings.Contains(err.Error(), "abcd") {
		t.Errorf("short key: %v", err)
	}
	write(adminKey, string(mustKey(t)), 0o600)
	if _, err := d.AdminKey(); err == nil || !strings.Contains(err.Error(), "ed25519") {
		t.Errorf("wrong type of key: %v", err)
	}
	write(tokenKey, "a key", 0o600)
	if string(d.LegacyTokenKey()) != "a key" {
		t.Error("the legacy token key is not found")
	}
	if _, err := AdminPublicKeys([]string{d.File(tokenKey)}); err == nil {
		t.Error("no public key: want an error")
	}
	if err := os.Chmod(d.path, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(d.path); err == nil {
		t.Error("a directory for all: want an error")
	}
}

func TestAuthority(t *testing.T) {
	t.Parallel()
	d := open(t)
	now := time.Date(2026, 9, 1, 0, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	a, err := d.Authority([]string{"localhost", "127.0.0.1"}, clock, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	c1, err := a.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.RootPEM())
	for _, name := range []string{"localhost", "127.0.0.1"} {
		if _, err := c1.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: name, CurrentTime: now}); err != nil {
			t.Error(err)
		}
	}
	b, err := d.Authority([]string{"localhost"}, clock, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if c2, _ := b.Certificate(); c2.Leaf.SerialNumber.Cmp(c1.Leaf.SerialNumber) != 0 {
		t.Error("a restart made a new certificate")
	}
	now = now.Add(serverLifetime - renewBefore)
	if c2, err := a.Certificate(); err != nil || c2.Leaf.SerialNumber.Cmp(c1.Leaf.SerialNumber) == 0 {
		t.Errorf("not renewed: %v", err)
	}
	if b, err = d.Authority([]string{"other.example"}, clock, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if c2, _ := b.Certificate(); c2.Leaf.VerifyHostname("other.example") != nil {
		t.Error("new name is not in the certificate")
	}
	if string(b.RootPEM()) != string(a.RootPEM()) {
		t.Error("the root changed")
	}
	if err := d.replace(caKey, mustKey(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Authority([]string{"localhost"}, clock, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "belong together") {
		t.Errorf("swapped key: %v", err)
	}
}

// TestFailedRenewalKeepsServing: a full disk is no reason to turn guests away
// while the certificate in hand is good for another month.
func TestFailedRenewalKeepsServing(t *testing.T) {
	t.Parallel()
	d := open(t)
	now := time.Date(2026, 9, 1, 0, 0, 0, 0, time.UTC)
	var log bytes.Buffer
	a, err := d.Authority([]string{"localhost"}, func() time.Time { return now }, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	c1, err := a.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(d.path); err != nil {
		t.Fatal(err)
	}
	now = now.Add(serverLifetime - renewBefore)
	if c2, err := a.Certificate(); err != nil || c2 != c1 {
		t.Errorf("got %v, want the old certificate", err)
	}
	if _, err := a.Certificate(); err != nil || strings.Count(log.String(), "cannot be renewed") != 1 {
		t.Errorf("%v; want one line about the renewal that failed: %q", err, log.String())
	}
	now = c1.Leaf.NotAfter
	if _, err := a.Certificate(); err == nil {
		t.Error("an expired certificate was served")
	}
}

func mustKey(t *testing.T) []byte {
	t.Helper()
	k, err := newECKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}
