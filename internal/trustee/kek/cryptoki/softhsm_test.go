//go:build cgo

package cryptoki_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/coffer-project/coffer/internal/trustee/hsmtest"
	. "github.com/coffer-project/coffer/internal/trustee/kek/cryptoki"
)

func TestMain(m *testing.M) { os.Exit(hsmtest.Main(m)) }

func object(label, value string) []Attribute {
	return []Attribute{
		{Type: AttrClass, Value: uint(ClassData)}, {Type: AttrToken, Value: true}, {Type: AttrPrivate, Value: true},
		{Type: AttrLabel, Value: []byte(label)}, {Type: AttrValue, Value: []byte(value)},
	}
}

// These tests start and finalize the one library of the process: one after
// another.
func TestSoftHSM(t *testing.T) {
	h := hsmtest.New(t)
	m, err := Load(h.Module)
	if err != nil {
		t.Fatal(err)
	}
	options := Options{Label: h.Label, PIN: PINFile(h.PINFile), Write: true}
	tok, err := m.Token(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	create := func(t *testing.T, label, value string) {
		t.Helper()
		if err := tok.Do(t.Context(), func(_ context.Context, s Session) error { _, err := s.Create(object(label, value)); return err }); err != nil {
			t.Fatal(err)
		}
	}
	want := func(t *testing.T, label, value string) {
		t.Helper()
		var got []byte
		err := tok.Do(t.Context(), func(_ context.Context, s Session) error {
			found, err := s.Find(object(label, value)[:4], 10)
			if err != nil || len(found) != 1 {
				return errors.Join(err, errors.New("expected one object"))
			}
			values, err := s.Attributes(found[0], AttrLabel, AttrValue)
			if err == nil {
				got = values[1]
			}
			return err
		})
		if err != nil || !bytes.Equal(got, []byte(value)) {
			t.Errorf("object %s: got %q, %v", label, got, err)
		}
	}
	create(t, "one", "first value")
	want(t, "one", "first value")

	other := pkcs11.New(h.Module) // somebody else in the same process
	defer other.Destroy()
	t.Run("all sessions closed", func(t *testing.T) {
		slots, err := other.GetSlotList(true)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range slots {
			if err := other.CloseAllSessions(s); err != nil {
				t.Fatal(err)
			}
		}
		want(t, "one", "first value")
	})
	t.Run("finalized", func(t *testing.T) {
		if err := other.Finalize(); err != nil {
			t.Fatal(err)
		}
		want(t, "one", "first value")
	})
	t.Run("second handle on the module", func(t *testing.T) {
		m2, err := Load(h.Module)
		if err != nil {
			t.Fatal(err)
		}
		tok2, err := m2.Token(t.Context(), options)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(tok2.Close(t.Context()), m2.Close()); err != nil {
			t.Fatal(err)
		}
		want(t, "one", "first value")
	})
	t.Run("wrong PIN", func(t *testing.T) {
		if err := tok.Close(t.Context()); err != nil { // or the process counts as logged in
			t.Fatal(err)
		}
		bad := filepath.Join(t.TempDir(), "pin")
		if err := os.WriteFile(bad, []byte("wrong"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Token(t.Context(), Options{Label: h.Label, PIN: PINFile(bad)}); !errors.Is(err, ErrPIN) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a token that appears later", func(t *testing.T) {
		late := hsmtest.NewLate(t)
		tok, err := m.Token(t.Context(), Options{Label: late.Label, PIN: PINFile(late.PINFile)})
		if err != nil {
			t.Fatal(err)
		}
		if err := tok.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("limits", func(t *testing.T) {
		if tok, err = m.Token(t.Context(), options); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			create(t, "many", "x")
		}
		err := tok.Do(t.Context(), func(_ context.Context, s Session) error {
			_, err := s.Find(object("many", "")[:4], 2)
			return err
		})
		if err == nil || !strings.Contains(err.Error(), "at most 2 objects") {
			t.Errorf("got %v", err)
		}
		if err := tok.Do(t.Context(), func(_ context.Context, s Session) error {
			if flags, err := s.Mechanism(MechAESGCM); err != nil || flags&CanEncrypt == 0 {
				t.Errorf("AES-GCM: flags %#x, %v", flags, err)
			}
			if flags, err := s.Mechanism(0x7fffffff); err != nil || flags != 0 {
				t.Errorf("an unknown mechanism: flags %#x, %v", flags, err)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(tok.Close(t.Context()), m.Close()); err != nil {
		t.Error(err)
	}
}

func TestLoad(t *testing.T) {
	notModule := filepath.Join(t.TempDir(), "x.so")
	if err := os.WriteFile(notModule, []byte("no library"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{notModule, "/does/not/exist.so", "/bin/sh"} {
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "PKCS#11 module") {
			t.Errorf("%s: %v", path, err)
		}
	}
}
