// Package datahub gives the guest its secrets: resources of the key broker,
// layer keys, registry credentials and sealed values. Everything it cannot
// get is an error; no container starts with a secret that is missing.
package datahub

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
)

// Broker is a key broker this guest attests to, see [kbs.Client].
type Broker interface {
	Attest(ctx context.Context) error
	Resource(ctx context.Context, uri kbs.ResourceURI) (secret.Bytes, error)
}

// ErrNoBroker says that the pod names no key broker.
var ErrNoBroker = errors.New("no key broker: initdata names none (aa.toml, token_configs.kbs.url), and none was given for an unsealed pod")

// Hub gets secrets. It is safe for concurrent use.
type Hub struct{ broker Broker }

// New returns a hub of a broker; without one (nil) every request fails with
// [ErrNoBroker].
func New(broker Broker) *Hub { return &Hub{broker: broker} }

// Attest proves to the broker what this guest is.
func (h *Hub) Attest(ctx context.Context) error {
	if h.broker == nil {
		return ErrNoBroker
	}
	return h.broker.Attest(ctx)
}

// Resource fetches what a resource URI (kbs:///repository/type/tag) names.
func (h *Hub) Resource(ctx context.Context, uri string) (secret.Bytes, error) {
	u, err := kbs.ParseResourceURI(uri)
	if err != nil {
		return secret.Bytes{}, err
	}
	if h.broker == nil {
		return secret.Bytes{}, fmt.Errorf("resource %s: %w", uri, ErrNoBroker)
	}
	value, err := h.broker.Resource(ctx, u)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("resource %s: %w", uri, err)
	}
	return value, nil
}

// Key fetches a key by its resource URI: a layer key, or the public key of a
// signature policy.
func (h *Hub) Key(ctx context.Context, kid string) (secret.Bytes, error) { return h.Resource(ctx, kid) }

// maxEnv bounds the value of an environment variable; the kernel's limit for
// one string is 128 KiB.
const maxEnv = 64 << 10

// EnvValue makes a secret fit for an environment variable.
func EnvValue(name string, value secret.Bytes) (string, error) {
	if value.Len() > maxEnv {
		return "", fmt.Errorf("env.%s: the secret has %d bytes, an environment variable at most %d", name, value.Len(), maxEnv)
	}
	s := string(value.Expose())
	if !utf8.ValidString(s) {
		// The runtime's configuration is JSON, which would change it silently.
		return "", fmt.Errorf("env.%s: the secret is not text in UTF-8; encode it, for example in base64", name)
	}
	if strings.ContainsRune(s, 0) {
		return "", fmt.Errorf("env.%s: the secret contains a zero byte; encode it, for example in base64", name)
	}
	return s, nil
}
