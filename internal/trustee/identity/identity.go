// Package identity makes and keeps the trustee's keys in its state directory:
// the TLS authority and server certificate, the
// administrator's key and the key-encryption key. Files are private to the
// user and written in one step; what exists is never replaced, but for a
// server certificate that is about to expire.
package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/coffer-project/coffer/secret"
)

// Names of the files in the state directory.
const (
	caCert     = "ca.pem"
	caKey      = "ca-key.pem"
	serverCert = "server.pem"
	serverKey  = "server-key.pem"
	tokenKey   = "token-key.pem"
	adminKey   = "admin-key.pem"
	kek        = "kek.hex"
)

// maxFile bounds a key file, in bytes.
const maxFile = 1 << 20

// Dir is a state directory.
type Dir struct{ path string }

// Open creates the directory where it does not exist. A directory that others
// may write to is refused.
func Open(path string) (Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return Dir{}, fmt.Errorf("state directory: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return Dir{}, fmt.Errorf("state directory: %w", err)
	}
	if !info.IsDir() || info.Mode().Perm()&0o022 != 0 {
		return Dir{}, fmt.Errorf("state directory %s: expected a directory that only its owner may write to, got mode %v", path, info.Mode())
	}
	return Dir{path}, nil
}

// File is a path in the directory.
func (d Dir) File(name string) string { return filepath.Join(d.path, name) }

// KEK returns the key-encryption key in file, or where that is empty the
// directory's own, which is made when it is missing.
func (d Dir) KEK(file string, size int) (secret.Bytes, error) {
	var text []byte
	var err error
	if file != "" {
		text, err = ReadSecret(file)
	} else {
		file = d.File(kek)
		text, err = d.loadOrCreate(kek, func() ([]byte, error) {
			key := make([]byte, size)
			if _, err := rand.Read(key); err != nil {
				return nil, err
			}
			return fmt.Appendf(nil, "%x\n", key), nil
		})
	}
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("key-encryption key: %w", err)
	}
	key, err := hex.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil || len(key) != size {
		return secret.Bytes{}, fmt.Errorf("key-encryption key %s: expected %d bytes in hex", file, size)
	}
	return secret.New(key), nil
}

// AdminKey returns the administrator's key pair, which is made when it is missing.
func (d Dir) AdminKey() (ed25519.PrivateKey, error) {
	text, err := d.loadOrCreate(adminKey, func() ([]byte, error) {
		_, k, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		return encodeKey(k)
	})
	if err != nil {
		return nil, fmt.Errorf("administrator's key: %w", err)
	}
	return parseKey[ed25519.PrivateKey](d.File(adminKey), text)
}

// AdminPublicKeys reads PEM files of Ed25519 public keys.
func AdminPublicKeys(files []string) ([]ed25519.PublicKey, error) {
	var out []ed25519.PublicKey
	for _, f := range files {
		text, err := ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("administrator's public key: %w", err)
		}
		block, _ := pem.Decode(text)
		if block == nil {
			return nil, fmt.Errorf("administrator's public key %s: expected PEM", f)
		}
		k, err := x509.ParsePKIXPublicKey(block.Bytes)
		pub, ok := k.(ed25519.PublicKey)
		if err != nil || !ok {
			return nil, fmt.Errorf("administrator's public key %s: expected an Ed25519 PUBLIC KEY", f)
		}
		out = append(out, pub)
	}
	return out, nil
}

func newECKey() ([]byte, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return encodeKey(k)
}

func encodeKey(k crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func parseKey[K crypto.PrivateKey](file string, text []byte) (K, error) {
	var zero K
	block, _ := pem.Decode(text)
	if block == nil {
		return zero, fmt.Errorf("key %s: expected PEM", file)
	}
	var k any
	var err error
	switch block.Type {
	case "EC PRIVATE KEY":
		k, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		k, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	if err != nil {
		return zero, fmt.Errorf("key %s: expected a PKCS#8 private key in PEM", file)
	}
	out, ok := k.(K)
	if !ok {
		return zero, fmt.Errorf("key %s: expected %T, got %T", file, zero, k)
	}
	return out, nil
}

// loadOrCreate returns the file's content, or makes it. Of two processes that
// make it at once, both end up with the same content: the link succeeds once.
func (d Dir) loadOrCreate(name string, create func() ([]byte, error)) ([]byte, error) {
	path := d.File(name)
	text, err := ReadSecret(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return text, err
	}
	if text, err = create(); err != nil {
		return nil, err
	}
	tmp, err := d.writeTemp(name, text)
	if err != nil {
		return nil, err
	}
	err = os.Link(tmp, path)
	if err := errors.Join(ignoreExist(err), os.Remove(tmp), d.sync()); err != nil {
		return nil, err
	}
	return ReadSecret(path)
}

// replace writes a file in one step.
func (d Dir) replace(name string, text []byte) error {
	tmp, err := d.writeTemp(name, text)
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, d.File(name)); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return d.sync()
}

// sync makes new names outlive a power cut: a database without its
// key-encryption key is lost.
func (d Dir) sync() error {
	f, err := os.Open(d.path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (d Dir) writeTemp(name string, text []byte) (string, error) {
	f, err := os.CreateTemp(d.path, "."+name+"-*") // mode 0600
	if err != nil {
		return "", err
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

func ignoreExist(err error) error {
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// ReadSecret reads a file of at most 1 MiB, and refuses one that others may
// read too.
func ReadSecret(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: expected mode 0600, got %v: others can read the key", path, info.Mode().Perm())
	}
	return ReadFile(path)
}

// ReadFile reads a regular file of at most 1 MiB.
func ReadFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("%s: expected a file of at most %d bytes", path, maxFile)
	}
	return os.ReadFile(filepath.Clean(path))
}
