// Package keyprovider is the key provider "attestation-agent" of ocicrypt: by
// it skopeo, buildah, nerdctl and whatever else has ocicrypt encrypt images for
// guests, and read such images again.
//
// Those programs encrypt layers themselves, each under a key of its own, and
// ask the provider to wrap that key. The [Provider] wraps it under a key of the
// owner, which a trustee keeps for attested guests, and answers with the key
// packet that the guest will find in the image (parameters and packets are
// those of guest-components' coco_keyprovider). [Server] speaks gRPC for it.
//
// Whoever can connect has layer keys wrapped and unwrapped. The server is
// therefore for loopback or a socket in the file system.
package keyprovider

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/crypt/encrypt"
	"github.com/coffer-project/coffer/secret"
)

// Name is the provider's name in ocicrypt's configuration and in images.
const Name = "attestation-agent"

// The sample key of guest-components, which everybody knows
// (coco_keyprovider, "sample=true").
const (
	sampleKey = "d99b7705b0ba7a168295b3a3367270b0dd9b371bf514ca8b9ba7f0a33711daea"
	sampleID  = "kbs:///default/test-key/1"
)

// maxKeys bounds how many keys a provider remembers.
const maxKeys = 1024

// Registrar puts keys into a trustee. *admin.Client is one.
type Registrar interface {
	SetResource(ctx context.Context, uri kbs.ResourceURI, value secret.Bytes) error
	// ResourceVersions is an error or empty if there is no such resource.
	ResourceVersions(ctx context.Context, uri kbs.ResourceURI) ([]admin.ResourceInfo, error)
}

// Options say what a provider may do.
type Options struct {
	// Registrar keeps the keys for guests; nil leaves that to the owner. Then a
	// caller must name a key file and a key id, since nobody else would know
	// either.
	Registrar Registrar
	// ReadKey reads the file that a caller names with keypath=; nil refuses
	// such. What it returns is checked for its size.
	ReadKey func(path string) ([]byte, error)
	// Keys, by key id, are what is unwrapped with, and wrapped with if a caller
	// names the id and no file.
	Keys map[string]secret.Bytes
	// AllowSample lets callers use the key that everybody knows.
	AllowSample bool
	// Rand is crypto/rand.Reader outside of tests.
	Rand io.Reader
	// Logger gets one line per wrapped and unwrapped key.
	Logger *slog.Logger
}

// Provider wraps and unwraps layer keys. It may be used by several goroutines
// at once.
type Provider struct {
	o Options

	mu sync.Mutex
	// keys are those that were used for wrapping, by id. One id means one key
	// for as long as the provider lives, so that no image's key is replaced by
	// that of its next layer.
	keys map[string]secret.Bytes
}

// New makes a provider. Options.Keys are checked.
func New(o Options) (*Provider, error) {
	p := &Provider{o: o, keys: map[string]secret.Bytes{}}
	if o.Rand == nil || o.Logger == nil {
		return nil, errors.New("key provider: expected a source of random bytes and a logger")
	}
	keys := map[string]secret.Bytes{}
	for id, key := range o.Keys {
		normal, err := normalID(id)
		if err != nil {
			return nil, fmt.Errorf("key %q: %w", id, err)
		}
		if key.Len() != crypt.KeySize {
			return nil, fmt.Errorf("key %s: expected %d bytes, got %d", id, crypt.KeySize, key.Len())
		}
		keys[normal] = key
	}
	p.o.Keys = keys
	return p, nil
}

// Wrap answers one message of the operation keywrap, both in the protocol's
// JSON.
func (p *Provider) Wrap(ctx context.Context, message []byte) ([]byte, error) {
	in, err := parseInput(message, opWrap)
	if err != nil {
		return nil, err
	}
	if in.Wrap == nil || in.Wrap.EC == nil {
		return nil, errors.New("keywrapparams.ec: missing")
	}
	if len(in.Wrap.OptsData) == 0 {
		return nil, errors.New("keywrapparams.optsdata: missing")
	}
	defer clear(in.Wrap.OptsData)
	list := in.Wrap.EC.Parameters[Name]
	if len(list) != 1 {
		return nil, fmt.Errorf("keywrapparams.ec.Parameters: expected one entry of %s, got %d (providers: %.128q); an image is encrypted for one key at a time",
			Name, len(list), slices.Sorted(maps.Keys(in.Wrap.EC.Parameters)))
	}
	a, err := parseParams(string(list[0]))
	if err != nil {
		return nil, err
	}
	packet, err := p.wrap(ctx, a, in.Wrap.OptsData)
	if err != nil {
		return nil, err
	}
	return json.Marshal(output{Wrap: &wrapResults{Annotation: packet}})
}

func (p *Provider) wrap(ctx context.Context, a params, private []byte) ([]byte, error) {
	if a.sample {
		return p.wrapSample(private)
	}
	id, key, err := p.key(ctx, a)
	if err != nil {
		return nil, err
	}
	p.o.Logger.Info("a layer's key is wrapped", "key", id, "algorithm", a.algorithm)
	if a.algorithm == crypt.WrapGCM {
		return encrypt.Wrap(private, encrypt.Recipient{KID: id, Key: key}, p.o.Rand)
	}
	block, err := aes.NewCipher(key.Expose())
	if err != nil {
		return nil, err
	}
	packet := crypt.Packet{KID: id, WrapType: crypt.WrapCTR, IV: make([]byte, block.BlockSize()), WrappedData: make([]byte, len(private))}
	if _, err := io.ReadFull(p.o.Rand, packet.IV); err != nil {
		return nil, fmt.Errorf("random IV: %w", err)
	}
	cipher.NewCTR(block, packet.IV).XORKeyStream(packet.WrappedData, private)
	return json.Marshal(packet)
}

// wrapSample wraps the way of sample=true, which hides nothing from anybody.
func (p *Provider) wrapSample(private []byte) ([]byte, error) {
	if !p.o.AllowSample {
		return nil, errors.New("parameters: sample=true: everybody knows that key, so the image would be readable to all; it is allowed only if the key provider was started so")
	}
	p.o.Logger.Warn("a layer's key is wrapped under the sample key, which everybody knows")
	key, err := hex.DecodeString(sampleKey)
	if err != nil {
		return nil, err
	}
	return encrypt.Wrap(private, encrypt.Recipient{KID: sampleID, Key: secret.New(key)}, zeros{})
}

type zeros struct{}

// Read implements io.Reader.
func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// Unwrap answers one message of the operation keyunwrap, both in the protocol's
// JSON.
func (p *Provider) Unwrap(_ context.Context, message []byte) ([]byte, error) {
	in, err := parseInput(message, opUnwrap)
	if err != nil {
		return nil, err
	}
	if in.Unwrap == nil || len(in.Unwrap.Annotation) == 0 {
		return nil, errors.New("keyunwrapparams.annotation: missing")
	}
	packet, err := crypt.ParsePacket(in.Unwrap.Annotation)
	if err != nil {
		return nil, err
	}
	id, err := normalID(packet.KID)
	if err != nil {
		return nil, fmt.Errorf("key packet: kid: %w", err)
	}
	key, ok := p.o.Keys[id]
	if !ok && id == sampleID && p.o.AllowSample {
		raw, err := hex.DecodeString(sampleKey)
		if err != nil {
			return nil, err
		}
		key, ok = secret.New(raw), true
	}
	if !ok {
		return nil, fmt.Errorf("key %s: the key provider was not given it; it has %s", id, p.have())
	}
	plain, err := packet.Unwrap(key)
	if err != nil {
		return nil, err
	}
	p.o.Logger.Info("a layer's key is unwrapped", "key", id)
	return json.Marshal(output{Unwrap: unwrapResults{OptsData: plain.Expose()}})
}

func (p *Provider) have() string {
	if len(p.o.Keys) == 0 {
		return "none"
	}
	return strings.Join(slices.Sorted(maps.Keys(p.o.Keys)), ", ")
}
