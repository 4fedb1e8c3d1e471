// Package protect turns an image into one that only attested pods can read: its
// layers are encrypted for a key that the trustee holds, and the result is
// signed. It is what `coffer image protect` does.
package protect

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/coffer-project/coffer/internal/cli/ui"
	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/crypt/encrypt"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/secret"
)

// Options say what is protected, and how.
type Options struct {
	// Source and Destination as `coffer image protect --help` describes them.
	Source, Destination string
	// KeyURI is the kbs:/// resource of the key-encryption key; empty leaves
	// the layers as they are.
	KeyURI string
	// KeyFile holds the key; empty makes a new one.
	KeyFile string
	// SignKeyFile holds the private key (PEM); empty leaves the image unsigned.
	SignKeyFile string
	// Registry is how registries are reached.
	Registry run.ImageOptions
	// Admin puts the key into the trustee. Required with KeyURI.
	Admin *admin.Client
	UI    *ui.UI
}

// Result is a protected image.
type Result struct {
	// Reference is the image as the other commands take it: a registry's
	// destination with the manifest's digest, or the layout with its tag.
	Reference string `json:"reference"`
	Digest    string `json:"digest"`
	Key       string `json:"key,omitempty"`
	Signed    bool   `json:"signed"`
}

// Image protects one image. The key is in the trustee before anything that
// needs it is pushed.
func Image(ctx context.Context, o Options) (*Result, error) {
	signer, err := ReadSigner("--sign-key", o.SignKeyFile)
	if err != nil {
		return nil, err
	}
	spool, err := os.MkdirTemp("", "coffer-protect-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(spool) }()
	o.Registry.Spool = spool
	src, err := run.OpenSource(ctx, o.Source, o.Registry)
	if err != nil {
		return nil, err
	}
	defer func() { _ = src.Close() }()
	dst, err := openDestination(o.Destination, o.Registry)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dst.close() }()

	var pushed oci.Descriptor
	if o.KeyURI != "" {
		key, err := o.putKey(ctx)
		if err != nil {
			return nil, err
		}
		defer key.Clear()
		o.UI.Status("encrypting %s", o.Source)
		pushed, err = build.Encrypt(ctx, src, src.Ref, oci.GuestPlatform(), dst, []encrypt.Recipient{{KID: o.KeyURI, Key: key}}, spool, rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("encrypt %s: %w", o.Source, err)
		}
	} else {
		o.UI.Status("copying %s", o.Source)
		if pushed, err = build.Copy(ctx, src, src.Ref, dst); err != nil {
			return nil, fmt.Errorf("copy %s: %w", o.Source, err)
		}
	}
	if err := dst.Tag(ctx, pushed, dst.ref.Tag); err != nil {
		return nil, fmt.Errorf("tag %s: %w", o.Destination, err)
	}
	ref := dst.ref.WithDigest(pushed.Digest)
	if signer != nil {
		o.UI.Status("signing %s", ref)
		if _, err := signature.Sign(ctx, dst, ref, signer, rand.Reader); err != nil {
			return nil, fmt.Errorf("sign %s: %w", ref, err)
		}
	}
	name := ref.String()
	if dst.layout {
		name = o.Destination
	}
	return &Result{Reference: name, Digest: pushed.Digest.String(), Key: o.KeyURI, Signed: signer != nil}, nil
}

// putKey reads or makes the key-encryption key and puts it into the trustee.
func (o Options) putKey(ctx context.Context) (secret.Bytes, error) {
	uri, err := kbs.ParseResourceURI(o.KeyURI)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("--key: %w", err)
	}
	key := make([]byte, crypt.KeySize)
	if o.KeyFile != "" {
		if key, err = os.ReadFile(o.KeyFile); err != nil {
			return secret.Bytes{}, fmt.Errorf("--key-file: %w", err)
		}
		if len(key) != crypt.KeySize {
			return secret.Bytes{}, fmt.Errorf("--key-file %s: expected %d bytes, got %d", o.KeyFile, crypt.KeySize, len(key))
		}
	} else if _, err := rand.Read(key); err != nil {
		return secret.Bytes{}, err
	}
	value := secret.New(key)
	if err := o.Admin.SetResource(ctx, uri, value); err != nil {
		return secret.Bytes{}, fmt.Errorf("put %s into the trustee: %w", uri, err)
	}
	return value, nil
}

type destination struct {
	signature.Store
	// ref is the destination's reference; made up for a layout.
	ref    oci.Reference
	layout bool
	close  func() error
}

func openDestination(name string, o run.ImageOptions) (*destination, error) {
	if rest, ok := strings.CutPrefix(name, "oci:"); ok {
		dir, tag, ok := strings.Cut(rest, ":")
		if !ok || oci.CheckTag(tag) != nil {
			return nil, fmt.Errorf("destination %q: expected oci:DIR:TAG", name)
		}
		l, err := layout.Create(dir)
		if err != nil {
			return nil, fmt.Errorf("destination %s: %w", name, err)
		}
		return &destination{l, oci.Reference{Registry: "localhost", Repository: "layout", Tag: tag}, true, l.Close}, nil
	}
	ref, err := oci.ParseReference(strings.TrimPrefix(name, "docker://"))
	if err != nil {
		return nil, fmt.Errorf("destination: %w", err)
	}
	if ref.Tag == "" || ref.Digest != "" {
		return nil, fmt.Errorf("destination %q: expected a reference with a tag and without a digest", name)
	}
	client, err := run.RegistryClient(o)
	if err != nil {
		return nil, err
	}
	repository, err := client.Repository(ref)
	if err != nil {
		return nil, err
	}
	return &destination{repository, ref, false, func() error { client.Close(); return nil }}, nil
}

// ReadSigner reads an unencrypted private key in PEM, PKCS#8, SEC 1 or PKCS#1,
// from the file that flag named. Without a path there is no key.
func ReadSigner(flag, path string) (crypto.Signer, error) {
	if path == "" {
		return nil, nil //nolint:nilnil // no key is asked for
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s %s: expected a PEM block, found none", flag, path)
	}
	if strings.Contains(block.Type, "ENCRYPTED") {
		return nil, fmt.Errorf("%s %s: the key is encrypted (%s); expected an unencrypted PKCS#8, EC or RSA key", flag, path, block.Type)
	}
	if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
		if signer, ok := key.(crypto.Signer); ok {
			return signer, nil
		}
	}
	if key, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	return nil, errors.New(flag + " " + path + ": expected an ECDSA, Ed25519 or RSA private key")
}
