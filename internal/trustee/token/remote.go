package token

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	// setRefresh is how old a fetched set may be before it is fetched anew.
	setRefresh = 5 * time.Minute
	// setRetry is the least time between two fetches of a set, whether for a
	// key that is not in it or after a failure.
	setRetry = 10 * time.Second
	// setStale is how long a set is used that cannot be fetched again.
	setStale = time.Hour
	// maxSet and maxSetKeys bound a set.
	maxSet     = 1 << 20
	maxSetKeys = 64
)

// remoteKeys keeps JWK sets of files and URLs.
type remoteKeys struct {
	client *http.Client
	now    func() time.Time
	fixed  []jose.JSONWebKey
	urls   []*remoteSet
}

// remoteSet is one set behind a URL.
type remoteSet struct {
	url *url.URL
	// turn is held by whoever fetches.
	turn chan struct{}

	mu    sync.Mutex
	keys  []jose.JSONWebKey
	read  time.Time
	tried time.Time
	err   error
}

func newRemoteKeys(client *http.Client, now func() time.Time) *remoteKeys {
	return &remoteKeys{client: client, now: now}
}

// add reads a file, or remembers a URL.
func (r *remoteKeys) add(s string) error {
	file, u, err := setURL(s)
	if err != nil {
		return err
	}
	if u != nil {
		if r.client == nil {
			return fmt.Errorf("JWK set %s: there is no HTTP client to fetch it", s)
		}
		r.urls = append(r.urls, &remoteSet{url: u, turn: make(chan struct{}, 1)})
		return nil
	}
	f, err := os.Open(filepath.Clean(file))
	if err != nil {
		return fmt.Errorf("JWK set: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	text, err := io.ReadAll(io.LimitReader(f, maxSet+1))
	if err != nil {
		return fmt.Errorf("JWK set: %w", err)
	}
	keys, err := parseSet(text)
	if err != nil {
		return fmt.Errorf("JWK set %s: %w", file, err)
	}
	r.fixed = append(r.fixed, keys...)
	return nil
}

// parseSet reads a JWK set. Keys that cannot verify a token are left out.
func parseSet(text []byte) ([]jose.JSONWebKey, error) {
	if len(text) > maxSet {
		return nil, fmt.Errorf("expected at most %d bytes", maxSet)
	}
	var raw struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(text, &raw); err != nil {
		return nil, fmt.Errorf("is no JWK set: %w", err)
	}
	if len(raw.Keys) == 0 || len(raw.Keys) > maxSetKeys {
		return nil, fmt.Errorf("expected 1 to %d keys, got %d", maxSetKeys, len(raw.Keys))
	}
	var out []jose.JSONWebKey
	for _, text := range raw.Keys {
		var k jose.JSONWebKey
		if err := json.Unmarshal(text, &k); err == nil && k.IsPublic() && !weak(k.Key) {
			out = append(out, k)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("holds no public key that tokens could be checked with")
	}
	return out, nil
}

// weak reports whether a key is none that tokens may be signed with.
func weak(key any) bool {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		_, err := algorithm(k.Curve)
		return err != nil
	case *rsa.PublicKey:
		return k.N.BitLen() < minRSA || k.E < 3 || k.E%2 == 0
	}
	return true
}

// find returns the keys that match. Where none does, the sets are fetched
// anew, but no more often than every [setRetry].
func (r *remoteKeys) find(ctx context.Context, match func(jose.JSONWebKey) bool) ([]jose.JSONWebKey, error) {
	var out []jose.JSONWebKey
	add := func(keys []jose.JSONWebKey) {
		for _, k := range keys {
			if match(k) {
				out = append(out, k)
			}
		}
	}
	add(r.fixed)
	var errs []error
	for _, age := range []time.Duration{setRefresh, 0} {
		for _, s := range r.urls {
			keys, err := r.get(ctx, s, age)
			if err != nil {
				errs = append(errs, err)
			}
			add(keys)
		}
		if len(out) > 0 {
			return out, nil
		}
	}
	return nil, errors.Join(errs...)
}

// get returns a set that is at most age old, or one that was fetched less than
// [setRetry] ago.
func (r *remoteKeys) get(ctx context.Context, s *remoteSet, age time.Duration) ([]jose.JSONWebKey, error) {
	if keys, err, ok := s.have(r.now(), age); ok {
		return keys, err
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if keys, err, ok := s.have(r.now(), age); ok {
		return keys, err
	}
	// Whoever goes away while it fetches must not spoil it for the others; the
	// client has a timeout.
	keys, err := r.fetch(context.WithoutCancel(ctx), s.url)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := r.now()
	s.tried = now
	if err == nil {
		s.keys, s.read, s.err = keys, now, nil
		return keys, nil
	}
	s.err = fmt.Errorf("token: JWK set %s: %w", s.url, err)
	if now.Sub(s.read) < setStale {
		return s.keys, nil
	}
	return nil, s.err
}

// have is what is there already; ok is false where it is time to fetch.
func (s *remoteSet) have(now time.Time, age time.Duration) (keys []jose.JSONWebKey, err error, ok bool) { //nolint:revive // the error is a value here
	s.mu.Lock()
	defer s.mu.Unlock()
	held := now.Sub(s.read)
	fresh := s.keys != nil && held >= 0 && held < age
	waits := now.Sub(s.tried) >= 0 && now.Sub(s.tried) < setRetry
	switch {
	case fresh:
		return s.keys, nil, true
	case !waits:
		return nil, nil, false
	case s.keys != nil && held < setStale:
		return s.keys, nil, true
	}
	return nil, s.err, true
}

// fetch reads a set, or the set that an OIDC discovery document names.
func (r *remoteKeys) fetch(ctx context.Context, u *url.URL) ([]jose.JSONWebKey, error) {
	text, err := r.read(ctx, u.String())
	if err == nil {
		if keys, err := parseSet(text); err == nil {
			return keys, nil
		}
	}
	discovery := strings.TrimSuffix(u.String(), "/") + "/.well-known/openid-configuration"
	text, err2 := r.read(ctx, discovery)
	if err2 != nil {
		if err == nil {
			err = errors.New("is no JWK set")
		}
		return nil, errors.Join(err, err2)
	}
	var doc struct {
		JWKSURI string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("%s: %w", discovery, err)
	}
	target, err := url.Parse(doc.JWKSURI)
	if err != nil || target.Scheme != "https" {
		return nil, fmt.Errorf("%s: jwks_uri: expected an https:// URL, got %.200q", discovery, doc.JWKSURI)
	}
	if text, err = r.read(ctx, target.String()); err != nil {
		return nil, err
	}
	return parseSet(text)
}

func (r *remoteKeys) read(ctx context.Context, address string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: expected status 200, got %d", address, resp.StatusCode)
	}
	return io.ReadAll(io.LimitReader(resp.Body, maxSet+1))
}
