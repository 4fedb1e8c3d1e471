package datahub

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/coffer-project/coffer/initdata/guestconfig"
	"github.com/coffer-project/coffer/internal/guest/kms"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/secret/sealed"
)

// Unseal opens a sealed secret, see package sealed. Its signature is always
// checked, by a key that a trustee holds and that the header names. The form
// without a signature is refused.
func (h *Hub) Unseal(ctx context.Context, text string) (secret.Bytes, error) {
	s, err := sealed.Parse(text)
	if err != nil {
		return secret.Bytes{}, err
	}
	p, err := h.verify(ctx, s)
	if err != nil {
		return secret.Bytes{}, err
	}
	value, err := h.open(ctx, p)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("sealed secret: %w", err)
	}
	return value, nil
}

// verify checks the signature with the key that the header names. Whoever wrote
// the header may name any resource that this pod may have, so only what reads
// as a verification key helps, and who can put one there is the trustee's.
func (h *Hub) verify(ctx context.Context, s *sealed.Secret) (sealed.Payload, error) {
	kid := s.Header().Kid
	if !strings.HasPrefix(kid, "kbs") {
		return sealed.Payload{}, fmt.Errorf("sealed secret: header.kid: expected a resource of the key broker (kbs:///…), got %.128q: keys in files of the guest are nobody's word", kid)
	}
	doc, err := h.Resource(ctx, kid)
	if err != nil {
		return sealed.Payload{}, fmt.Errorf("sealed secret: header.kid: %w", err)
	}
	defer doc.Clear()
	key, err := sealed.ParsePublicKey(doc.Expose())
	if err != nil {
		return sealed.Payload{}, fmt.Errorf("sealed secret: header.kid: %.256s: %w", kid, err)
	}
	return s.Verify(key)
}

// open gets what a verified payload stands for.
func (h *Hub) open(ctx context.Context, p sealed.Payload) (secret.Bytes, error) {
	if p.Provider == sealed.KBS {
		if p.Type == sealed.Envelope {
			return h.openEnvelope(ctx, p)
		}
		if err := errors.Join(p.NoSettings(), sealed.Into(p.Annotations, "annotations", &struct{}{})); err != nil {
			return secret.Bytes{}, err
		}
		return h.Resource(ctx, p.Name)
	}
	provider, ok := h.providers[p.Provider]
	if !ok {
		known := append(slices.Collect(maps.Keys(h.providers)), sealed.KBS)
		slices.Sort(known)
		return secret.Bytes{}, fmt.Errorf("payload.provider: this guest knows %s, got %.32q", strings.Join(known, ", "), p.Provider)
	}
	q := kms.Request{Name: p.Name, Settings: p.Settings, Annotations: p.Annotations, Credential: h.credential}
	if p.Type == sealed.Vault {
		return provider.Secret(ctx, q)
	}
	q.Name = p.KeyID
	var err error
	if q.Ciphertext, err = p.Key(); err != nil {
		return secret.Bytes{}, err
	}
	key, err := provider.Decrypt(ctx, q)
	if err != nil {
		return secret.Bytes{}, err
	}
	defer key.Clear()
	return p.DecryptData(key)
}

// openEnvelope opens an envelope whose key is wrapped by a key of the key
// broker.
func (h *Hub) openEnvelope(ctx context.Context, p sealed.Payload) (secret.Bytes, error) {
	kek, err := h.Resource(ctx, p.KeyID)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("payload.key_id: %w", err)
	}
	defer kek.Clear()
	key, err := p.UnwrapKey(kek)
	if err != nil {
		return secret.Bytes{}, err
	}
	defer key.Clear()
	return p.DecryptData(key)
}

// credential gets a credential of a key management service, by its name below
// [guestconfig.CredentialDir].
func (h *Hub) credential(ctx context.Context, name string) (secret.Bytes, error) {
	uri, ok := h.credentials[guestconfig.CredentialDir+name]
	if !ok {
		return secret.Bytes{}, fmt.Errorf("credential: cdh.toml has no [[credentials]] entry with the path %s%s", guestconfig.CredentialDir, name)
	}
	value, err := h.Resource(ctx, uri)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("credential %s: %w", name, err)
	}
	return value, nil
}

// Reveal returns the content of a file: unsealed if it begins with "sealed.",
// else as it is. It is for files that a host delivers, such as those of a
// Kubernetes Secret. What is meant to be sealed and cannot be opened is an
// error, never the sealed text.
func (h *Hub) Reveal(ctx context.Context, content []byte) (value secret.Bytes, wasSealed bool, err error) {
	if !sealed.Is(content) {
		return secret.New(slices.Clone(content)), false, nil
	}
	value, err = h.Unseal(ctx, string(content))
	return value, true, err
}

// filesAtOnce bounds requests for files of one volume.
const filesAtOnce = 8

// Files gets the contents of a volume's secret files: sealed secrets and
// resources, by file name. It returns all of them or an error that names the
// file.
func (h *Hub) Files(ctx context.Context, sealedFiles, resources map[string]string) (map[string]secret.Bytes, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	type job struct {
		name, ref string
		get       func(context.Context, string) (secret.Bytes, error)
	}
	var jobs []job
	for name, text := range sealedFiles {
		jobs = append(jobs, job{name, text, h.Unseal})
	}
	for name, uri := range resources {
		if _, ok := sealedFiles[name]; ok {
			return nil, fmt.Errorf("file %.256q: is both a sealed secret and a resource", name)
		}
		jobs = append(jobs, job{name, uri, h.Resource})
	}
	var mu sync.Mutex
	out := make(map[string]secret.Bytes, len(jobs))
	turns := make(chan struct{}, filesAtOnce)
	var wg sync.WaitGroup
	for _, j := range jobs {
		wg.Go(func() {
			select {
			case turns <- struct{}{}:
				defer func() { <-turns }()
			case <-ctx.Done():
				return
			}
			value, err := j.get(ctx, j.ref)
			if err != nil {
				cancel(fmt.Errorf("file %.256q: %w", j.name, err))
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out[j.name] = value
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		for _, v := range out {
			v.Clear()
		}
		return nil, err
	}
	return out, nil
}
