// Package datahub gives the guest its secrets: resources of key brokers, layer
// keys, registry credentials, sealed values, and tokens for workloads.
// Everything it cannot get is an error; no container starts with a secret that
// is missing.
//
// A pod has one default trustee and may have others, by name; a resource URI
// says which one is meant. What a trustee gave is kept for a short while in a
// cache of bounded size that is wiped as it is left, so that containers which
// start together ask once. What a trustee denied is not kept: asking again may
// be answered differently the next second, and the caller is told each time. A
// trustee that refuses to attest the guest any longer takes back everything it
// gave.
package datahub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/coffer-project/coffer/initdata/guestconfig"
	"github.com/coffer-project/coffer/internal/guest/kms"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
)

// Broker is a key broker this guest attests to, see [kbs.Client].
type Broker interface {
	Attest(ctx context.Context) error
	Resource(ctx context.Context, uri kbs.ResourceURI) (secret.Bytes, error)
}

// Tokener is a broker that has tokens for workloads, see [kbs.Client].
type Tokener interface {
	Token(ctx context.Context) (kbs.Token, error)
}

// Asker is a broker whose plugins can be asked, see [kbs.Client].
type Asker interface {
	Ask(ctx context.Context, uri kbs.ResourceURI, body []byte) (secret.Bytes, error)
}

// Service gives tokens of the kind coco_as, see [kbs.Service].
type Service interface {
	Token(ctx context.Context) (string, error)
}

// ErrNoBroker says that the pod names no key broker.
var ErrNoBroker = errors.New("no key broker: initdata names none (aa.toml, token_configs.kbs.url), and none was given for an unsealed pod")

// What the cache holds unless initdata says otherwise.
const (
	DefaultLifetime   = time.Minute
	DefaultMaxEntries = 256
	DefaultMaxBytes   = 4 << 20
)

// Options say whom a hub asks.
type Options struct {
	// Default answers for URIs without a name; nil: nobody does.
	Default Broker
	// Named are the other trustees.
	Named map[string]Broker
	// Service gives tokens of the kind coco_as; nil: nobody does.
	Service Service
	// Providers are key management services for sealed secrets, by the name
	// that payloads call them.
	Providers map[string]kms.Provider
	// Credentials are what Providers show, in memory.
	Credentials []guestconfig.Credential
	// Resources bound the cache; what is not set has its default.
	Resources guestconfig.Resources
	// Logger is told that things were fetched, never what they are; nil: nobody.
	Logger *slog.Logger
}

// Hub gets secrets. It is safe for concurrent use. Secrets that it returns are
// copies, the caller's to clear.
type Hub struct {
	brokers     map[string]Broker
	service     Service
	providers   map[string]kms.Provider
	credentials map[string]string
	cache       *cache
	log         *slog.Logger
}

// New returns a hub of one broker; without one (nil) every request fails with
// [ErrNoBroker].
func New(broker Broker) *Hub { return Open(Options{Default: broker}) }

// Open returns a hub. It asks nobody yet.
func Open(o Options) *Hub {
	h := &Hub{
		brokers: maps.Clone(o.Named), service: o.Service, providers: maps.Clone(o.Providers),
		credentials: map[string]string{}, log: o.Logger,
	}
	if h.brokers == nil {
		h.brokers = map[string]Broker{}
	}
	if o.Default != nil {
		h.brokers[""] = o.Default
	}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	for _, c := range o.Credentials {
		h.credentials[c.Path] = c.URI
	}
	limits := limits{lifetime: DefaultLifetime, entries: DefaultMaxEntries, bytes: DefaultMaxBytes}
	if o.Resources.Lifetime != nil {
		limits.lifetime = *o.Resources.Lifetime
	}
	if n := o.Resources.MaxEntries; n > 0 {
		limits.entries = n
	}
	if n := o.Resources.MaxBytes; n > 0 {
		limits.bytes = n
	}
	h.cache = newCache(limits)
	return h
}

// Connect opens a hub as initdata configures it: with a broker for each trustee
// that it names, the default one being the one without a name. Of o, what the
// configuration does not say is taken: service, providers and logger. Without
// any trustee the hub is one whose requests fail with [ErrNoBroker].
func Connect(c *guestconfig.Config, o Options, dial func(guestconfig.Trustee) (Broker, error)) (*Hub, error) {
	o.Credentials, o.Resources, o.Named = c.Credentials, c.Resources, map[string]Broker{}
	if c.URL != "" {
		var err error
		if o.Default, err = dial(guestconfig.Trustee{URL: c.URL, RootPEM: c.RootPEM}); err != nil {
			return nil, fmt.Errorf("trustee %s: %w", c.URL, err)
		}
	}
	for _, t := range c.Trustees {
		broker, err := dial(t)
		if err != nil {
			return nil, fmt.Errorf("trustee %q: %w", t.Name, err)
		}
		o.Named[t.Name] = broker
	}
	return Open(o), nil
}

// Close forgets and wipes what is kept. Requests that come later are answered,
// and nothing is kept of the answers.
func (h *Hub) Close() { h.cache.close() }

// Attest proves to the default trustee what this guest is. The others are
// attested to when one of their resources is asked for.
func (h *Hub) Attest(ctx context.Context) error {
	broker, ok := h.brokers[""]
	if !ok {
		return ErrNoBroker
	}
	err := broker.Attest(ctx)
	h.judge("", err)
	return err
}

// judge takes back what a trustee gave that refuses this guest.
func (h *Hub) judge(trustee string, err error) {
	if kbs.Refused(err) {
		h.cache.purge(trustee)
	}
}

// broker returns the broker that a URI means.
func (h *Hub) broker(uri kbs.ResourceURI) (Broker, error) {
	name := uri.Trustee()
	if b, ok := h.brokers[name]; ok {
		return b, nil
	}
	if name == "" {
		return nil, ErrNoBroker
	}
	names := slices.Sorted(maps.Keys(h.brokers))
	names = slices.DeleteFunc(names, func(s string) bool { return s == "" })
	if len(names) == 0 {
		return nil, fmt.Errorf("there is no trustee %q: initdata (coffer.toml) declares none by name", name)
	}
	return nil, fmt.Errorf("there is no trustee %q: initdata (coffer.toml) declares %s", name, strings.Join(names, ", "))
}

// Resource fetches what a resource URI names: kbs:///repository/type/tag, or
// kbs://NAME/… of another trustee, or kbs+plugin://… of a plugin. Requests for
// one resource that come together are one request.
func (h *Hub) Resource(ctx context.Context, uri string) (secret.Bytes, error) {
	u, err := kbs.ParseResourceURI(uri)
	if err != nil {
		return secret.Bytes{}, err
	}
	broker, err := h.broker(u)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("resource %s: %w", u, err)
	}
	value, err := h.cache.get(ctx, u, func(ctx context.Context) (secret.Bytes, error) {
		value, err := broker.Resource(ctx, u)
		h.judge(u.Trustee(), err)
		if err == nil {
			h.log.DebugContext(ctx, "resource fetched", "resource", u.String(), "bytes", value.Len())
		}
		return value, err
	})
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("resource %s: %w", u, err)
	}
	return value, nil
}

// Ask sends a body to a trustee's plugin, kbs+plugin://…, and returns the answer,
// of which nothing is kept.
func (h *Hub) Ask(ctx context.Context, uri string, body []byte) (secret.Bytes, error) {
	u, err := kbs.ParseResourceURI(uri)
	if err != nil {
		return secret.Bytes{}, err
	}
	broker, err := h.broker(u)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("%s: %w", u, err)
	}
	asker, ok := broker.(Asker)
	if !ok {
		return secret.Bytes{}, fmt.Errorf("%s: this key broker answers no questions", u)
	}
	answer, err := asker.Ask(ctx, u, body)
	h.judge(u.Trustee(), err)
	return answer, err
}

// Key fetches a key by its resource URI: a layer key, or the public key of a
// signature policy. A pull should use a [Keyring].
func (h *Hub) Key(ctx context.Context, kid string) (secret.Bytes, error) { return h.Resource(ctx, kid) }

// Keyring fetches every key once, however long that is ago and whatever the
// lifetime of resources. It is for one pull, whose layers share a key; [Keyring.Close]
// ends it and wipes the keys. It is safe for concurrent use.
type Keyring struct {
	hub  *Hub
	keys *cache
}

// Keyring returns an empty keyring.
func (h *Hub) Keyring() *Keyring {
	return &Keyring{h, newCache(limits{lifetime: untilClosed, entries: DefaultMaxEntries, bytes: DefaultMaxBytes})}
}

// Key fetches a key by its resource URI, or returns it again.
func (k *Keyring) Key(ctx context.Context, kid string) (secret.Bytes, error) {
	u, err := kbs.ParseResourceURI(kid)
	if err != nil {
		return secret.Bytes{}, err
	}
	return k.keys.get(ctx, u, func(ctx context.Context) (secret.Bytes, error) { return k.hub.Resource(ctx, kid) })
}

// Close forgets and wipes the keys.
func (k *Keyring) Close() { k.keys.close() }

// The kinds of token, by the guest components' names.
const (
	TokenKBS     = "kbs"
	TokenService = "coco_as"
)

// Token returns a token for the workload. The kind [TokenKBS] is that of the
// default trustee with its key, {"token":"<JWT>","tee_keypair":"<PEM>"}, the
// one that all resources are fetched with; [TokenService] is a JWT.
func (h *Hub) Token(ctx context.Context, kind string) (secret.Bytes, error) {
	switch kind {
	case TokenKBS:
		broker, ok := h.brokers[""]
		if !ok {
			return secret.Bytes{}, fmt.Errorf("token %s: %w", kind, ErrNoBroker)
		}
		tokener, ok := broker.(Tokener)
		if !ok {
			return secret.Bytes{}, fmt.Errorf("token %s: this key broker gives no tokens", kind)
		}
		token, err := tokener.Token(ctx)
		h.judge("", err)
		if err != nil {
			return secret.Bytes{}, fmt.Errorf("token %s: %w", kind, err)
		}
		defer token.Key.Clear()
		return token.Document()
	case TokenService:
		if h.service == nil {
			return secret.Bytes{}, fmt.Errorf("token %s: initdata names no attestation service (aa.toml, token_configs.coco_as.url)", kind)
		}
		token, err := h.service.Token(ctx)
		if err != nil {
			return secret.Bytes{}, fmt.Errorf("token %s: %w", kind, err)
		}
		return secret.New([]byte(token)), nil
	}
	return secret.Bytes{}, fmt.Errorf("token type %.32q: expected %s or %s", kind, TokenKBS, TokenService)
}

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
