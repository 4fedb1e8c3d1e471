package adminapi

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Times and limits of a provider's keys.
const (
	// fetchTimeout is the longest that a token waits for keys.
	fetchTimeout = 5 * time.Second
	// freshFor is how long keys are used without asking for newer ones: a key
	// that the provider withdraws counts for no longer than that while the
	// provider can be reached.
	freshFor = 5 * time.Minute
	// usableFor is how long they are used while the provider cannot be reached.
	usableFor = 24 * time.Hour
	// fetchEvery keeps tokens with invented key names from being turned into
	// requests to the provider.
	fetchEvery  = 10 * time.Second
	maxDocument = 1 << 20
	maxKeys     = 128
	minRSABits  = 2048
)

// outage is a provider whose keys cannot be had: a token can be neither
// accepted nor refused.
type outage struct{ cause error }

func (e *outage) Error() string { return "keys of the OpenID provider: " + e.cause.Error() }
func (e *outage) Unwrap() error { return e.cause }

// errNoKey is a token that no key has signed.
var errNoKey = errors.New("no key verifies the signature")

// keySet caches a provider's keys. Unlike that of the library it has keys
// expire, bounds what it reads, waits and asks for, and outlives an outage.
type keySet struct {
	issuer, jwks string
	http         *http.Client
	now          func() time.Time

	mu   sync.Mutex
	keys []jose.JSONWebKey
	// fetched is when the keys came, tried when they were last asked for, and
	// failure what came of it.
	fetched, tried time.Time
	failure        error
	// flight is closed when the fetch under way is over; nil: there is none.
	flight chan struct{}
}

func newKeySet(o ProviderOptions) (*keySet, error) {
	k := &keySet{issuer: o.Issuer, jwks: o.JWKS, now: o.Now}
	if file, ok := strings.CutPrefix(o.JWKS, "file://"); ok {
		k.jwks = file
	}
	for what, s := range map[string]string{"issuer": o.Issuer, "jwks": k.jwks} {
		// Without JWKS the issuer is asked; a file is not.
		asked := what == "jwks" && strings.Contains(s, "://") || what == "issuer" && o.JWKS == ""
		if asked {
			if err := checkHTTPS(s); err != nil {
				return nil, fmt.Errorf("%s: %w", what, err)
			}
		}
	}
	client := http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: fetchTimeout, DisableKeepAlives: true}}
	if o.HTTP != nil {
		client = *o.HTTP
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	k.http = &client
	return k, nil
}

func checkHTTPS(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Fragment != "" {
		return fmt.Errorf("%.256q: expected an https:// URL", s)
	}
	return nil
}

// verify returns what the token says, when one of the keys signed it.
func (k *keySet) verify(ctx context.Context, sig *jose.JSONWebSignature) ([]byte, error) {
	keys, err := k.current(ctx, false)
	if err != nil {
		return nil, err
	}
	if payload, ok := verifyJWK(sig, keys); ok {
		return payload, nil
	}
	// The provider may have a new key since.
	if keys, err = k.current(ctx, true); err != nil {
		return nil, err
	}
	if payload, ok := verifyJWK(sig, keys); ok {
		return payload, nil
	}
	return nil, errNoKey
}

func verifyJWK(sig *jose.JSONWebSignature, keys []jose.JSONWebKey) ([]byte, bool) {
	header := sig.Signatures[0].Protected
	for i := range keys {
		if (header.KeyID != "" && keys[i].KeyID != header.KeyID) || (keys[i].Algorithm != "" && keys[i].Algorithm != header.Algorithm) {
			continue
		}
		if payload, err := sig.Verify(&keys[i]); err == nil {
			return payload, true
		}
	}
	return nil, false
}

// current returns keys that may be used, asking for them where that is due, or
// where newer ones are wanted and the last time is not too recent.
func (k *keySet) current(ctx context.Context, newer bool) ([]jose.JSONWebKey, error) {
	k.mu.Lock()
	now := k.now()
	recent := !k.tried.IsZero() && now.Sub(k.tried) < fetchEvery
	due := newer || k.fetched.IsZero() || now.Sub(k.fetched) >= freshFor
	if due && !recent && k.flight == nil {
		k.flight = make(chan struct{})
		k.tried = now
		go k.fetch(context.WithoutCancel(ctx), k.flight)
	}
	flight := k.flight
	k.mu.Unlock()
	if due && flight != nil {
		select {
		case <-flight:
		case <-ctx.Done():
			return nil, &outage{context.Cause(ctx)}
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.fetched.IsZero() || k.now().Sub(k.fetched) >= usableFor:
		failure := k.failure
		if failure == nil {
			failure = errors.New("were not fetched yet")
		}
		return nil, &outage{failure}
	case newer && k.failure != nil:
		return nil, &outage{k.failure}
	}
	return k.keys, nil
}

// fetch replaces the keys, or keeps them where that fails.
func (k *keySet) fetch(ctx context.Context, done chan struct{}) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	keys, err := k.load(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failure = err; err == nil {
		k.keys, k.fetched = keys, k.now()
	}
	k.flight = nil
	close(done)
}

func (k *keySet) load(ctx context.Context) ([]jose.JSONWebKey, error) {
	source := k.jwks
	if source == "" {
		var err error
		if source, err = k.discover(ctx); err != nil {
			return nil, err
		}
	}
	var doc []byte
	var err error
	if strings.Contains(source, "://") {
		doc, err = k.get(ctx, source)
	} else {
		doc, err = readFile(source)
	}
	if err != nil {
		return nil, err
	}
	return parseKeys(doc)
}

// discover asks the issuer where its keys are (OpenID Connect Discovery 1.0,
// section 4).
func (k *keySet) discover(ctx context.Context) (string, error) {
	doc, err := k.get(ctx, strings.TrimSuffix(k.issuer, "/")+"/.well-known/openid-configuration")
	if err != nil {
		return "", err
	}
	var c struct {
		Issuer string `json:"issuer"`
		JWKS   string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(doc, &c); err != nil {
		return "", fmt.Errorf("OpenID configuration is no JSON of the expected types: %w", err)
	}
	if c.Issuer != k.issuer {
		return "", fmt.Errorf("OpenID configuration: issuer: expected %q, got %.256q", k.issuer, c.Issuer)
	}
	if err := checkHTTPS(c.JWKS); err != nil {
		return "", fmt.Errorf("OpenID configuration: jwks_uri: %w", err)
	}
	return c.JWKS, nil
}

func (k *keySet) get(ctx context.Context, where string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := k.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: expected status 200, got %d", where, resp.StatusCode)
	}
	return readAll(where, resp.Body)
}

func readFile(name string) (_ []byte, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return readAll(name, f)
}

func readAll(where string, r io.Reader) ([]byte, error) {
	doc, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err == nil && len(doc) > maxDocument {
		err = fmt.Errorf("expected at most %d bytes", maxDocument)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	return doc, nil
}

// parseKeys reads a JSON Web Key Set (RFC 7517, section 5). Keys of unknown
// types, private or weak keys and those for encryption are passed over.
func parseKeys(doc []byte) ([]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(doc, &set); err != nil {
		return nil, fmt.Errorf("key set is no JSON of the expected types: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("key set: expected at most %d keys, got %d", maxKeys, len(set.Keys))
	}
	var keys []jose.JSONWebKey
	for _, raw := range set.Keys {
		var key jose.JSONWebKey
		if json.Unmarshal(raw, &key) != nil || !key.Valid() || !key.IsPublic() || (key.Use != "" && key.Use != "sig") {
			continue
		}
		if r, ok := key.Key.(*rsa.PublicKey); ok && r.N.BitLen() < minRSABits {
			continue
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New("key set: holds no public signature key")
	}
	return keys, nil
}
