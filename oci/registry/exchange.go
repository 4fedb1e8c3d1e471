package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/coffer-project/coffer/oci"
)

const (
	// attempts is how often a request is made that fails for reasons that may
	// pass; a mirror gets fewer, since others are behind it.
	attempts       = 5
	mirrorAttempts = 2
	// The wait between attempts doubles from firstWait to maxWait, unless the
	// server says how long (Retry-After); more than maxRetryAfter is not
	// waited.
	firstWait     = 250 * time.Millisecond
	maxWait       = 8 * time.Second
	maxRetryAfter = 60 * time.Second
	// maxErrorBody bounds what is read of an error's explanation.
	maxErrorBody = 16 << 10
)

// What a request wants to do, in the terms of token servers.
const (
	actionPull = "pull"
	actionPush = "pull,push"
)

// request is one that is to be made of an endpoint.
type request struct {
	method, path string
	query        url.Values
	accept       []string
	actions      string
	// from is where a blob is resumed; 0 is its start.
	from int64
	// body can be sent once, data again and again.
	body        io.Reader
	data        []byte
	size        int64
	contentType string
	// target replaces path: where an upload goes.
	target *url.URL
}

// statusError is an answer that is not the one that was wanted.
type statusError struct {
	what string
	code int
	// codes are those of the distribution specification, "Error Codes".
	codes []string
	wait  time.Duration
}

// Error implements error.
func (e *statusError) Error() string {
	s := fmt.Sprintf("%s: HTTP status %d %s", e.what, e.code, http.StatusText(e.code))
	if len(e.codes) > 0 {
		s += " (" + strings.Join(e.codes, ", ") + ")"
	}
	if e.wait > 0 {
		s += fmt.Sprintf(", to be tried again in %v", e.wait)
	}
	return s
}

// Is makes absent content [oci.ErrNotFound].
func (e *statusError) Is(target error) bool {
	return target == oci.ErrNotFound && e.code == http.StatusNotFound
}

// response is an answer whose body is given up when it stands still.
type response struct {
	*http.Response
	body *stallReader
}

// do makes a request, again if it fails for reasons that may pass. The body of
// the response is the caller's to close; its status is below 300.
func (e *endpoint) do(ctx context.Context, r request) (*response, error) {
	most := attempts
	if e.mirror {
		most = mirrorAttempts
	}
	for n := 1; ; n++ {
		resp, err := e.once(ctx, r)
		if err == nil {
			return resp, nil
		}
		wait, again := e.retry(ctx, r, n, err)
		if !again || n >= most {
			if n > 1 {
				err = fmt.Errorf("%w (after %d attempts)", err, n)
			}
			return nil, err
		}
		if err := e.client.options.Sleep(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// retry says whether attempt n is worth another, and when.
func (e *endpoint) retry(ctx context.Context, r request, n int, err error) (time.Duration, bool) {
	if ctx.Err() != nil || r.body != nil {
		return 0, false
	}
	wait := min(firstWait<<(n-1), maxWait)
	wait += time.Duration(rand.Int64N(int64(wait) / 4)) // not all at once
	if status, ok := errors.AsType[*statusError](err); ok {
		switch status.code {
		case http.StatusTooManyRequests, http.StatusServiceUnavailable:
			return max(wait, status.wait), status.wait <= maxRetryAfter
		case http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout:
			return wait, true
		}
		return 0, false
	}
	if errors.Is(err, ErrRefused) || errors.Is(err, oci.ErrUnauthorized) || errors.Is(err, errStalled) || errors.Is(err, errSlow) {
		return 0, false
	}
	if _, ok := errors.AsType[errTLS](err); ok {
		return 0, false
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		return 0, false
	}
	return wait, true
}

// once makes a request, twice if the registry first asks who it is.
func (e *endpoint) once(ctx context.Context, r request) (*response, error) {
	used, err := e.authorization(ctx, r.actions)
	if err != nil {
		return nil, e.unauthorized(err)
	}
	resp, err := e.roundTrip(ctx, r, used)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusUnauthorized && r.body == nil {
		discard(resp.body)
		if err := e.challenged(resp.Response, used, r.actions); err != nil {
			return nil, e.unauthorized(err)
		}
		if used, err = e.authorization(ctx, r.actions); err != nil {
			return nil, e.unauthorized(err)
		}
		if resp, err = e.roundTrip(ctx, r, used); err != nil {
			return nil, err
		}
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer discard(resp.body)
	status := &statusError{what: r.method + " " + e.url(r.path).Path, code: resp.StatusCode, wait: retryAfter(resp.Response, e.client.options.Now())}
	if r.method != http.MethodHead {
		status.codes = errorCodes(resp.body)
	}
	if resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden {
		return nil, e.unauthorized(fmt.Errorf("%w: %w", oci.ErrUnauthorized, status))
	}
	return nil, status
}

// unauthorized says which credentials were used, and which are needed.
func (e *endpoint) unauthorized(err error) error {
	if !errors.Is(err, oci.ErrUnauthorized) {
		return err
	}
	if e.login == nil {
		return fmt.Errorf("%w; there are none for %s: add them to the auth.json of authenticated_registry_credentials_uri (coffer run --credentials; for pods without initdata, unsealed_registries.auth of the node), unless the name of the repository is wrong", err, e.ref.Name())
	}
	return fmt.Errorf("%w; those for %q in the auth.json were not accepted for repository %s", err, e.login.key, e.ref.Repository)
}

// roundTrip sends a request and follows its redirects.
func (e *endpoint) roundTrip(ctx context.Context, r request, authorization string) (_ *response, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer func() {
		if err != nil {
			cancel(err)
		}
	}()
	target := r.target
	if target == nil {
		target = e.url(r.path)
		target.RawQuery = r.query.Encode()
	}
	for hops := 0; ; hops++ {
		resp, err := e.hop(ctx, r, target, authorization) //nolint:bodyclose // the response's reader closes it
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return nil, err
		}
		location := resp.Header.Get("Location")
		redirect := resp.StatusCode >= 300 && resp.StatusCode < 400 && location != "" && (r.method == http.MethodGet || r.method == http.MethodHead)
		if !redirect {
			return &response{resp, newStallReader(ctx, cancel, resp.Body, e.client.options.StallTimeout)}, nil
		}
		discard(resp.Body)
		if hops == maxRedirects {
			return nil, fmt.Errorf("%s: stopped after %d redirects: %w", target.Host, maxRedirects, ErrRefused)
		}
		next, err := target.Parse(location)
		if err != nil {
			return nil, fmt.Errorf("%s: redirect: expected a URL: %w", target.Host, ErrRefused)
		}
		if err := e.checkURL(next, false); err != nil {
			return nil, fmt.Errorf("redirect from %s: %w", target.Host, err)
		}
		if target.Scheme == "https" && next.Scheme != "https" {
			return nil, fmt.Errorf("redirect from https://%s to %s://%s: %w", target.Host, next.Scheme, next.Host, ErrRefused)
		}
		target = next
	}
}

// hop sends a request to one place. Only the registry itself gets the
// credentials.
func (e *endpoint) hop(ctx context.Context, r request, target *url.URL, authorization string) (*http.Response, error) {
	body := r.body
	if r.data != nil {
		body = strings.NewReader(string(r.data))
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target.String(), body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", target.Host, ErrRefused)
	}
	if r.body != nil {
		if req.ContentLength = r.size; r.size == 0 {
			req.Body = http.NoBody
		}
	}
	if r.contentType != "" {
		req.Header.Set("Content-Type", r.contentType)
	}
	for _, a := range r.accept {
		req.Header.Add("Accept", a)
	}
	if r.from > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", r.from))
	}
	if authorization != "" && e.sameHost(target) {
		req.Header.Set("Authorization", authorization)
	}
	return e.send(req)
}

// discard lets a connection be used again if little is left on it.
func discard(body io.ReadCloser) {
	_, _ = io.CopyN(io.Discard, body, 4<<10)
	_ = body.Close()
}

// retryAfter reads Retry-After (RFC 9110, 10.2.3): seconds or a date.
func retryAfter(resp *http.Response, now time.Time) time.Duration {
	v := resp.Header.Get("Retry-After")
	if n, err := strconv.ParseInt(v, 10, 32); err == nil {
		return max(0, time.Duration(n)*time.Second)
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, t.Sub(now)).Round(time.Second)
	}
	return 0
}

// errorCodes reads the codes of an error, and nothing else: messages are free
// text, and might say the credentials back.
func errorCodes(body io.Reader) []string {
	data, err := io.ReadAll(io.LimitReader(body, maxErrorBody))
	var doc struct {
		Errors []struct {
			Code string `json:"code"`
		} `json:"errors"`
	}
	if err != nil || json.Unmarshal(data, &doc) != nil {
		return nil
	}
	var out []string
	for _, e := range doc.Errors[:min(len(doc.Errors), 4)] {
		known := len(e.Code) <= 40 && strings.Trim(e.Code, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") == ""
		if known && e.Code != "" {
			out = append(out, e.Code)
		}
	}
	return out
}
