package tpmattest_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/coffer-project/coffer/tee/internal/teetest/swtpmtest"
	"github.com/coffer-project/coffer/tee/tpm/tpmattest"
)

func TestKeys(t *testing.T) {
	t.Parallel()
	s := swtpmtest.Start(t)
	if _, err := tpmattest.New(tpmattest.Options{TPM: s}); !errors.Is(err, tpm2.TPMRCHandle) {
		t.Errorf("without a key: expected an error that says so, got %v", err)
	}
	first := attester(t, tpmattest.Options{TPM: s, CreateAK: true})
	again := attester(t, tpmattest.Options{TPM: s})
	if !bytes.Equal(first.AKPublic(), again.AKPublic()) {
		t.Error("the key at the handle is not the one that was made")
	}
	if _, err := tpmattest.New(tpmattest.Options{TPM: s, AK: 0x81010077, CreateAK: true, Kind: "des"}); err == nil {
		t.Error("a key of unknown kind was made")
	}
	// A storage key signs nothing.
	storage, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(s)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: storage.ObjectHandle, Name: storage.Name}, PersistentHandle: 0x81000001}.Execute(s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tpmattest.New(tpmattest.Options{TPM: s, AK: 0x81000001}); err == nil {
		t.Error("a storage key was taken for an attestation key")
	}
	if _, err := first.Evidence(t.Context(), make([]byte, 65)); err == nil {
		t.Error("65 bytes of report data were accepted")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := first.Evidence(ended, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: got %v", err)
	}
}

func TestNV(t *testing.T) {
	t.Parallel()
	s := swtpmtest.Start(t)
	const index = 0x01400002
	if _, err := tpmattest.ReadNV(s, index); !errors.Is(err, tpm2.TPMRCHandle) {
		t.Errorf("an index that does not exist: got %v", err)
	}
	for _, size := range []int{48, 48, 64, 1, 1500, 2000} {
		data := make([]byte, size)
		_, _ = rand.Read(data)
		if err := tpmattest.WriteNV(s, index, data); err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		got, err := tpmattest.ReadNV(s, index)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes: %v, got %d bytes", size, err, len(got))
		}
	}
	if err := tpmattest.WriteNV(s, index, nil); err == nil {
		t.Error("nothing was written")
	}
	if err := tpmattest.UndefineNV(s, index); err != nil {
		t.Fatal(err)
	}
	if err := tpmattest.UndefineNV(s, index); !errors.Is(err, tpm2.TPMRCHandle) {
		t.Errorf("undefined twice: got %v", err)
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := tpmattest.Open(dir+"/tpmrm0", dir+"/tpm0"); !errors.Is(err, tpmattest.ErrNoTPM) {
		t.Errorf("expected ErrNoTPM, got %v", err)
	}
	if err := os.WriteFile(dir+"/tpm0", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tpmattest.Open(dir+"/tpmrm0", dir+"/tpm0"); err == nil || errors.Is(err, tpmattest.ErrNoTPM) {
		t.Errorf("a file that is no device: got %v", err)
	}
}
