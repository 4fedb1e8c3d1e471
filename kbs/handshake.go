package kbs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/coffer-project/coffer/kbs/internal/brokerhttp"
)

// handshakes runs handshakes until one succeeds or fails for good. A
// handshake is always repeated as a whole: a nonce is good for one attempt.
func (c *Client) handshakes(ctx context.Context) (*session, error) {
	var s *session
	lost := false
	err := c.retry(ctx, func() error {
		var err error
		s, err = c.handshake(ctx)
		// 401 to the evidence means that the broker does not know the session
		// (any more), for example because it restarted. It deserves one more
		// try and no more: some brokers answer 401 to everything.
		if se, ok := errors.AsType[*sessionLostError](err); ok && !lost {
			lost = true
			c.log.DebugContext(ctx, "session lost, attesting again", "detail", se.status.Info.Detail)
			s, err = c.handshake(ctx)
		}
		return err
	})
	if err != nil {
		return nil, &AttestationError{err}
	}
	return s, nil
}

// sessionLostError is a 401 in answer to evidence.
type sessionLostError struct{ status *StatusError }

func (e *sessionLostError) Error() string { return e.status.Error() }
func (e *sessionLostError) Unwrap() error { return e.status }

// handshake runs request, challenge, attestation and response once.
func (c *Client) handshake(ctx context.Context) (*session, error) {
	start := time.Now()
	name := c.attester.TEE()
	challenge, cookie, err := c.auth(ctx, Request{
		Version:        ProtocolVersion,
		TEE:            name,
		HashAlgorithms: []string{SHA256, SHA384, SHA512},
		PolicySelector: c.selector,
	})
	if err != nil {
		return nil, err
	}
	key, err := GenerateTEEKeyOf(c.rand, c.keyType)
	if err != nil {
		return nil, err
	}
	a, err := c.collect(ctx, challenge, key)
	if err != nil {
		return nil, err
	}
	body, err := marshal(a)
	if err != nil {
		return nil, fmt.Errorf("%s evidence: %w", name, err)
	}
	if len(body) > MaxAttestationBytes {
		return nil, fmt.Errorf("%s evidence: attestation has %d bytes, the limit is %d", name, len(body), MaxAttestationBytes)
	}
	answer, _, err := c.do(ctx, brokerhttp.Request{
		Method:   http.MethodPost,
		Path:     AttestPath,
		Header:   http.Header{"Content-Type": {"application/json"}, "Cookie": {SessionCookie + "=" + cookie}},
		Body:     body,
		MaxBytes: MaxTokenBytes + 1024,
	})
	if se, ok := errors.AsType[*StatusError](err); ok && se.Status == http.StatusUnauthorized {
		return nil, &sessionLostError{se}
	}
	if err != nil {
		return nil, err
	}
	token, err := ParseTokenResponse(answer)
	if err != nil {
		return nil, err
	}
	c.log.InfoContext(ctx, "attested", "tee", string(name), "duration", time.Since(start))
	return newSession(token.Token, key, c.now()), nil
}

// auth asks for a challenge and returns it with the session's cookie.
func (c *Client) auth(ctx context.Context, r Request) (*Challenge, string, error) {
	body, err := marshal(r)
	if err != nil {
		return nil, "", err
	}
	answer, header, err := c.do(ctx, brokerhttp.Request{
		Method:   http.MethodPost,
		Path:     AuthPath,
		Header:   http.Header{"Content-Type": {"application/json"}},
		Body:     body,
		MaxBytes: MaxChallengeBytes,
	})
	if err != nil {
		return nil, "", err
	}
	challenge, err := ParseChallenge(answer)
	if err != nil {
		return nil, "", err
	}
	for _, ck := range (&http.Response{Header: header}).Cookies() {
		if ck.Name == SessionCookie && ck.Value != "" && len(ck.Value) <= maxCookieBytes && all(ck.Value, isCookieByte) {
			return challenge, ck.Value, nil
		}
	}
	return nil, "", fmt.Errorf("POST %s: answer has no usable cookie %q: is this a key broker?", AuthPath, SessionCookie)
}

// isCookieByte is what a session id consists of: enough for hexadecimal and
// any base64.
func isCookieByte(b byte) bool {
	return isAlnum(b) || b == '-' || b == '_' || b == '.' || b == '+' || b == '/' || b == '='
}
