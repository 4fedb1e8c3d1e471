package collateral

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/coffer-project/coffer/tee"
)

// Bounds of one request.
const (
	maxRedirects   = 3
	attempts       = 3
	retryPause     = 500 * time.Millisecond
	maxOCSPRequest = 4 << 10
)

// query is what is asked of a service.
type query struct {
	item  Item
	url   string
	post  []byte // the body of a POST; nil: GET
	chain []byte // OCSP: what the response is about
}

// answer is what a service says to a query.
type answer struct {
	body, chain []byte
}

// statusError is an answer that is none.
type statusError struct {
	status int
	// after is what Retry-After asks for; 0 where it does not.
	after time.Duration
}

func (e *statusError) Error() string {
	return fmt.Sprintf("the service answered with status %d %s", e.status, http.StatusText(e.status))
}

// contentError is an answer that cannot be the item.
type contentError struct{ err error }

func (e *contentError) Error() string { return e.err.Error() }
func (e *contentError) Unwrap() error { return e.err }

// waitError is a request that was not sent for want of time.
type waitError struct{ err error }

func (e *waitError) Error() string { return "no turn came in time: " + e.err.Error() }
func (e *waitError) Unwrap() error { return e.err }

var errDowngrade = errors.New("the service redirects to an address that is not https")

// harden returns a client that follows few redirects, none of them from https
// to something else, and has no cookies. base may be nil.
func harden(base *http.Client) *http.Client {
	client := &http.Client{}
	if base != nil {
		client.Timeout, client.Transport = base.Timeout, base.Transport
	}
	if standard, ok := http.DefaultTransport.(*http.Transport); ok && client.Transport == nil {
		own := standard.Clone()
		own.MaxResponseHeaderBytes = 4 * MaxChain
		client.Transport = own
	}
	client.CheckRedirect = func(next *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return &contentError{fmt.Errorf("the service redirects more than %d times", maxRedirects)}
		}
		if last := via[len(via)-1]; last.URL.Scheme == "https" && next.URL.Scheme != "https" || next.URL.Scheme != "https" && next.URL.Scheme != "http" {
			return &contentError{errDowngrade}
		}
		return nil
	}
	return client
}

// request asks once.
func (c *Client) request(ctx context.Context, q query) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	method, body := http.MethodGet, io.Reader(nil)
	if q.post != nil {
		method, body = http.MethodPost, bytes.NewReader(q.post)
	}
	request, err := http.NewRequestWithContext(ctx, method, q.url, body)
	if err != nil {
		return answer{}, err
	}
	if q.post != nil {
		request.Header.Set("Content-Type", "application/ocsp-request") // RFC 6960, appendix A.1
	}
	c.event(Event{Type: EventFetch, Item: q.item, Source: q.url})
	response, err := c.http.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return answer{}, &statusError{response.StatusCode, retryAfter(response.Header, time.Now())}
	}
	out := answer{chain: q.chain}
	if out.body, err = io.ReadAll(io.LimitReader(response.Body, 2*MaxBody+1)); err != nil {
		return answer{}, err
	}
	if len(out.body) > 2*MaxBody || q.item.Kind != RIM && len(out.body) > MaxBody {
		return answer{}, &contentError{fmt.Errorf("expected at most %d bytes, the service sends more", MaxBody)}
	}
	if media, _, err := mime.ParseMediaType(response.Header.Get("Content-Type")); err == nil && media == "text/html" || looksLikeHTML(out.body) {
		return answer{}, &contentError{errors.New("expected collateral, got a page for browsers (HTML): is this address that of the service, or of a proxy's log-in?")}
	}
	if err := unwrap(q.item, response.Header, &out); err != nil {
		return answer{}, &contentError{err}
	}
	return out, nil
}

// issuerHeaders are where Intel's service puts the issuers (PCS API v4); the
// second is that of the older interface, which some PCCS use.
func issuerHeaders(k Kind) []string {
	switch k {
	case TCBInfo:
		return []string{"TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"}
	case QEIdentity:
		return []string{"SGX-Enclave-Identity-Issuer-Chain"}
	case PCKCRL:
		return []string{"SGX-PCK-CRL-Issuer-Chain"}
	}
	return nil
}

// unwrap takes the item out of the service's form.
func unwrap(i Item, h http.Header, a *answer) error {
	if names := issuerHeaders(i.Kind); names != nil {
		for _, name := range names {
			escaped := h.Get(name)
			if escaped == "" {
				continue
			}
			chain, err := url.PathUnescape(escaped)
			if err != nil || len(chain) > MaxChain {
				return fmt.Errorf("header %s: expected URL-encoded certificates of at most %d bytes, got %d bytes: %w", name, MaxChain, len(chain), errOr(err))
			}
			a.chain = []byte(chain)
		}
		if a.chain == nil {
			return fmt.Errorf("header %s: expected the issuers' certificates, got none", names[0])
		}
	}
	switch i.Kind {
	case RootCRL, PCKCRL:
		a.body = derOfHex(a.body)
	case RIM:
		body, err := unwrapRIM(i.ID, a.body)
		if err != nil {
			return err
		}
		a.body = body
	}
	return nil
}

// derOfHex decodes a list that a PCCS sends as hex digits.
func derOfHex(body []byte) []byte {
	if text := bytes.TrimSpace(body); len(text) > 0 && text[0] != 0x30 { // DER begins with the byte 0x30, hex with '3'
		if der, err := hex.DecodeString(string(text)); err == nil {
			return der
		}
	}
	return body
}

// unwrapRIM reads the service's JSON: the manifest in base64 and its SHA-256
// (https://rim.attestation.nvidia.com/v1/api-docs, "Get RIM by ID").
func unwrapRIM(id string, body []byte) ([]byte, error) {
	var v struct {
		ID     string `json:"id"`
		RIM    string `json:"rim"`
		SHA256 string `json:"sha256"`
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return nil, fmt.Errorf("expected the service's JSON: %w", err)
	}
	if id != "" && v.ID != id {
		return nil, fmt.Errorf("id: expected %s, got %.128q", id, v.ID)
	}
	rim, err := base64.StdEncoding.Strict().DecodeString(v.RIM)
	if err != nil || len(rim) == 0 || len(rim) > MaxBody {
		return nil, fmt.Errorf("rim: expected base64 of 1 to %d bytes, got %d bytes: %w", MaxBody, len(rim), errOr(err))
	}
	if sum := sha256.Sum256(rim); v.SHA256 != "" && !strings.EqualFold(v.SHA256, hex.EncodeToString(sum[:])) {
		return nil, fmt.Errorf("rim: expected content of SHA-256 %.64q, got %x", v.SHA256, sum)
	}
	return rim, nil
}

// retryAfter is how long the service asks to be left alone (RFC 9110, §10.2.3):
// seconds, or a date, which counts from the service's own clock.
func retryAfter(h http.Header, now time.Time) time.Duration {
	value := strings.TrimSpace(h.Get("Retry-After"))
	if seconds, err := strconv.ParseInt(value, 10, 64); err == nil {
		return time.Duration(min(max(seconds, 0), int64(maxBackOff/time.Second))) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	return min(max(at.Sub(now), 0), maxBackOff)
}

// download asks until there is an answer, at the pace that the service allows.
// onTurn is called with true when a request is about to be sent and with false
// when the item has to wait again.
func (c *Client) download(ctx context.Context, q query, onTurn func(sending bool) bool) (answer, error) {
	u, err := url.Parse(q.url)
	if err != nil {
		return answer{}, err
	}
	t, err := c.pacer.enqueue(u.Host, q.item.Kind)
	if err != nil {
		return answer{}, err
	}
	blind, refused := 0, false
	for failed := 0; ; {
		if err := c.pacer.wait(ctx, t); err != nil {
			return answer{}, &waitError{err}
		}
		if !onTurn(true) {
			c.pacer.done(t, false)
			return answer{}, &waitError{context.DeadlineExceeded}
		}
		a, err := c.request(ctx, q)
		status, isStatus := errors.AsType[*statusError](err)
		if !isStatus || status.status != http.StatusTooManyRequests && status.status != http.StatusServiceUnavailable {
			c.pacer.done(t, refused)
			if failed++; !passing(err) || failed >= attempts || ctx.Err() != nil {
				return a, err
			}
			if err := sleep(ctx, retryPause<<(failed-1)); err != nil {
				return answer{}, err
			}
		} else {
			wait := c.pacer.refused(t, status.status == http.StatusTooManyRequests, status.after, blind)
			if status.after == 0 {
				blind++
			}
			refused = status.after == 0 && status.status == http.StatusTooManyRequests
			c.event(Event{Type: EventThrottled, Item: q.item, Source: q.url, Wait: wait, Err: err})
			if status.status == http.StatusServiceUnavailable && status.after == 0 && blind >= maxOverloads {
				return answer{}, err
			}
		}
		if !onTurn(false) {
			return answer{}, &waitError{context.DeadlineExceeded}
		}
		c.pacer.again(t)
	}
}

// maxOverloads is how often a service may be unavailable without saying for how
// long.
const maxOverloads = 5

// passing reports whether the same request may well go right a moment later.
func passing(err error) bool {
	if err == nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return false
	}
	if s, ok := errors.AsType[*statusError](err); ok {
		return s.status >= 500
	}
	_, bad := errors.AsType[*contentError](err)
	return !bad
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// failure puts an error of a download into the words of collateral.
func (c *Client) failure(q query, err error) *tee.CollateralError {
	out := &tee.CollateralError{Item: q.item.words(), Source: q.url, Reason: tee.CollateralUnreachable, Err: err}
	if status, ok := errors.AsType[*statusError](err); ok {
		switch status.status {
		case http.StatusNotFound, http.StatusGone, http.StatusBadRequest:
			out.Reason = tee.CollateralUnknown
		case http.StatusTooManyRequests, http.StatusServiceUnavailable:
			out.Reason, out.RetryAfter = tee.CollateralThrottled, max(status.after, minBackOff)
		}
	}
	if _, ok := errors.AsType[*contentError](err); ok {
		out.Reason = tee.CollateralInvalid
	}
	if _, waited := errors.AsType[*waitError](err); waited || errors.Is(err, errQueueFull) {
		if u, e := url.Parse(q.url); e == nil {
			out.Reason, out.RetryAfter = tee.CollateralThrottled, max(c.pacer.estimate(u.Host, q.item.Kind), minBackOff)
		}
	}
	return out
}
