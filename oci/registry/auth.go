package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/secret"
)

const (
	// maxToken bounds the answer of a token server.
	maxToken = 256 << 10
	maxRealm = 2048
	// defaultLife is how long a token is good if its server does not say
	// (distribution, "Token Authentication Specification": expires_in).
	defaultLife = 60 * time.Second
	// margin is how long before its end a token is no longer used.
	margin = 10 * time.Second
	// clientID names us to OAuth2 token servers.
	clientID = "coffer"
)

// tokenKey is what a token is good for.
type tokenKey struct {
	login                 *login
	realm, service, scope string
}

// tokenEntry is a token or the attempt to get one; who holds mu may change it.
type tokenEntry struct {
	mu    sync.Mutex
	value secret.Bytes
	until time.Time
	// refresh replaces the login's identity token when the server has issued
	// another.
	refresh secret.Bytes
}

// scope is what is asked for: of this repository, and no more, whatever the
// registry's challenge says.
func (e *endpoint) scope(actions string) string {
	return "repository:" + e.ref.Repository + ":" + actions
}

// authorization is the header for a request that may do actions. It is empty
// as long as the registry has not asked for one.
func (e *endpoint) authorization(ctx context.Context, actions string) (string, error) {
	e.mu.Lock()
	ch := e.challenge
	e.mu.Unlock()
	switch {
	case e.login != nil && e.login.bearer.Len() > 0:
		return "Bearer " + string(e.login.bearer.Expose()), nil
	case ch == nil:
		return "", nil
	case ch.scheme == "basic":
		return e.basic()
	}
	entry := e.client.entry(tokenKey{e.login, ch.realm, ch.service, e.scope(actions)})
	entry.mu.Lock()
	defer entry.mu.Unlock()
	if entry.value.Len() == 0 || !e.client.options.Now().Before(entry.until) {
		if err := e.token(ctx, ch, e.scope(actions), entry); err != nil {
			return "", err
		}
	}
	return "Bearer " + string(entry.value.Expose()), nil
}

// entry returns the cached token of a key. The cache is bounded by who may fill
// it: repositories that were opened.
func (c *Client) entry(k tokenKey) *tokenEntry {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tokens[k] == nil {
		c.tokens[k] = &tokenEntry{}
	}
	return c.tokens[k]
}

func (e *endpoint) basic() (string, error) {
	if e.login == nil || e.login.user == "" {
		return "", oci.ErrUnauthorized
	}
	plain := e.login.user + ":" + string(e.login.password.Expose())
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(plain)), nil
}

// challenged takes in what a 401 says, and tells whether another attempt makes
// sense: not with what has just been refused.
func (e *endpoint) challenged(resp *http.Response, used, actions string) error {
	ch, err := e.choose(resp.Header.Values("WWW-Authenticate"))
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.challenge = ch
	e.mu.Unlock()
	if ch.scheme == "basic" {
		if used != "" {
			return oci.ErrUnauthorized
		}
		return nil
	}
	// A token that was refused is not used again; one that another request got
	// in the meantime is.
	entry := e.client.entry(tokenKey{e.login, ch.realm, ch.service, e.scope(actions)})
	entry.mu.Lock()
	defer entry.mu.Unlock()
	if used == "Bearer "+string(entry.value.Expose()) {
		entry.value = secret.Bytes{}
	}
	return nil
}

// choose picks the challenge to meet and checks it.
func (e *endpoint) choose(headers []string) (*challenge, error) {
	var basic *challenge
	for _, ch := range parseChallenges(headers) {
		switch ch.scheme {
		case "bearer":
			if err := e.checkRealm(ch.realm); err != nil {
				return nil, err
			}
			return &ch, nil
		case "basic":
			basic = &ch
		}
	}
	if basic == nil {
		return nil, fmt.Errorf("WWW-Authenticate: expected a Basic or Bearer challenge, got none that is understood: %w", oci.ErrUnauthorized)
	}
	return basic, nil
}

func (e *endpoint) checkRealm(realm string) error {
	if len(realm) > maxRealm {
		return fmt.Errorf("token server: expected a URL of at most %d bytes, got %d: %w", maxRealm, len(realm), ErrRefused)
	}
	u, err := url.Parse(realm)
	if err != nil {
		return fmt.Errorf("token server: expected a URL, got %.60q: %w", realm, ErrRefused)
	}
	if err := e.checkURL(u, e.login != nil); err != nil {
		return fmt.Errorf("token server: %w", err)
	}
	return nil
}

// token gets a token for scope: with an identity token by OAuth2, else with
// user and password, or without (distribution, "Token Authentication
// Specification" and "OAuth2 Token Authentication").
func (e *endpoint) token(ctx context.Context, ch *challenge, scope string, entry *tokenEntry) error {
	ctx, cancel := context.WithTimeoutCause(ctx, e.client.options.StallTimeout, errStalled)
	defer cancel()
	req, err := e.tokenRequest(ctx, ch, scope, entry)
	if err != nil {
		return err
	}
	host := req.URL.Host
	resp, err := e.send(req)
	if err != nil {
		return fmt.Errorf("token server %s: %w", host, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxToken+1))
	defer clear(body)
	switch {
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden || resp.StatusCode == http.StatusBadRequest && e.login != nil:
		return fmt.Errorf("token server %s: HTTP status %d: %w", host, resp.StatusCode, oci.ErrUnauthorized)
	case resp.StatusCode != http.StatusOK:
		return &statusError{what: "token server " + host, code: resp.StatusCode, wait: retryAfter(resp, e.client.options.Now())}
	case err != nil:
		return fmt.Errorf("token server %s: %w", host, err)
	case len(body) > maxToken:
		return fmt.Errorf("token server %s: expected at most %d bytes, got more: %w", host, maxToken, ErrRefused)
	}
	return e.takeToken(host, body, entry)
}

func (e *endpoint) tokenRequest(ctx context.Context, ch *challenge, scope string, entry *tokenEntry) (*http.Request, error) {
	if e.login != nil && e.login.identity.Len() > 0 {
		refresh := e.login.identity
		if entry.refresh.Len() > 0 {
			refresh = entry.refresh
		}
		form := url.Values{"grant_type": {"refresh_token"}, "service": {ch.service}, "scope": {scope}, "client_id": {clientID}, "refresh_token": {string(refresh.Expose())}}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, ch.realm, strings.NewReader(form.Encode()))
		if err != nil {
			return nil, fmt.Errorf("token server: %w", ErrRefused)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		// The body is as secret as a header.
		if err := e.checkURL(req.URL, true); err != nil {
			return nil, fmt.Errorf("token server: %w", err)
		}
		return req, nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, ch.realm, nil)
	if err != nil {
		return nil, fmt.Errorf("token server: %w", ErrRefused)
	}
	q := req.URL.Query()
	if ch.service != "" {
		q.Set("service", ch.service)
	}
	q.Set("scope", scope)
	req.URL.RawQuery = q.Encode()
	if e.login != nil {
		header, err := e.basic()
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", header)
	}
	return req, nil
}

// takeToken reads a token server's answer.
func (e *endpoint) takeToken(host string, body []byte, entry *tokenEntry) error {
	var answer struct {
		Token        string `json:"token"`
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
		ExpiresIn    int64  `json:"expires_in"`
	}
	// The decoder's message might quote the token.
	if json.Unmarshal(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")), &answer) != nil {
		return fmt.Errorf("token server %s: expected a JSON object with token or access_token: %w", host, ErrRefused)
	}
	value := answer.Token
	if value == "" {
		value = answer.AccessToken
	}
	if value == "" || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return fmt.Errorf("token server %s: token: expected printable text, got none: %w", host, ErrRefused)
	}
	life := defaultLife
	if n := answer.ExpiresIn; n > 0 {
		life = time.Duration(min(n, 24*3600)) * time.Second
	}
	entry.value = secret.New([]byte(value))
	entry.until = e.client.options.Now().Add(max(life-margin, life/2))
	if answer.RefreshToken != "" {
		entry.refresh = secret.New([]byte(answer.RefreshToken))
	}
	return nil
}
