package bao

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"
)

// auth is the token in use. [Client.turn] is held while it is looked at or
// replaced, so that one caller logs in for all and none waits beyond its ctx.
type auth struct {
	token    string
	obtained time.Time
	// expires is zero where the token does not expire, or not as far as we know.
	expires   time.Time
	lease     time.Duration
	renewable bool
}

const (
	// maxCredential bounds files with tokens and secret IDs.
	maxCredential = 8 << 10
	// loginEvery keeps refused requests from becoming a storm of logins.
	loginEvery = 5 * time.Second
	// maxLease bounds what a server may say, about 10 years.
	maxLease = 10 * 365 * 24 * time.Hour
)

// token returns the token to use. refused is the one that the server has just
// denied, "" for none: a new one is sought then, and the same is returned if
// there is none.
func (c *Client) token(ctx context.Context, refused string) (string, error) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return "", fmt.Errorf("%w: another request is logging in: %w", ErrUnavailable, ctx.Err())
	}
	a := &c.auth
	now := c.o.Now()
	expired := !a.expires.IsZero() && !now.Before(a.expires)
	if a.token != "" && !expired && a.token != refused {
		return a.token, nil
	}
	if c.o.AppRole == nil {
		token, err := readCredential(c.o.TokenFile)
		if err != nil {
			return "", fmt.Errorf("OpenBao token: %w", err)
		}
		if token != a.token {
			*a = auth{token: token, obtained: now}
		}
		a.expires = time.Time{} // the server is to say so, not our clock
		return a.token, nil
	}
	if a.token != "" && !expired && now.Sub(a.obtained) < loginEvery && !now.Before(a.obtained) {
		return a.token, nil
	}
	if err := c.login(ctx, now); err != nil {
		return "", err
	}
	return a.token, nil
}

func readCredential(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, maxCredential+1)
	n := 0
	for n < len(buf) {
		m, err := f.Read(buf[n:])
		if n += m; err != nil || m == 0 {
			break
		}
	}
	s := strings.TrimSpace(string(buf[:n]))
	if s == "" || n > maxCredential || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("expected 1 to %d printable ASCII characters in %s", maxCredential, file)
	}
	return s, nil
}

// login needs the turn.
func (c *Client) login(ctx context.Context, now time.Time) error {
	id, err := readCredential(c.o.AppRole.SecretIDFile)
	if err != nil {
		return fmt.Errorf("AppRole secret ID: %w", err)
	}
	var a answer
	err = c.send(ctx, Request{
		Method: http.MethodPost, Path: "auth/" + c.o.AppRole.Mount + "/login",
		Body: map[string]string{"role_id": c.o.AppRole.RoleID, "secret_id": id},
	}, "", &a)
	if status, ok := errors.AsType[*Error](err); ok && status.Status == http.StatusBadRequest {
		err = fmt.Errorf("%w: %w", ErrDenied, err) // "invalid role or secret ID"
	}
	if err == nil {
		err = c.adopt(&a, now)
	}
	if err != nil {
		return fmt.Errorf("AppRole login: %w", err)
	}
	return nil
}

// adopt takes a token from an answer.
func (c *Client) adopt(a *answer, now time.Time) error {
	if a.Auth == nil || len(a.Auth.ClientToken) > maxCredential || a.Auth.ClientToken == "" ||
		strings.ContainsFunc(a.Auth.ClientToken, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("expected an answer with a client token")
	}
	if a.Auth.LeaseDuration < 0 || a.Auth.LeaseDuration > int64(maxLease/time.Second) {
		return fmt.Errorf("expected a lease of 0 to %d seconds, got %d", int64(maxLease/time.Second), a.Auth.LeaseDuration)
	}
	lease := time.Duration(a.Auth.LeaseDuration) * time.Second
	c.auth = auth{token: a.Auth.ClientToken, obtained: now, lease: lease, renewable: a.Auth.Renewable}
	if lease > 0 {
		c.auth.expires = now.Add(lease)
	}
	return nil
}

// Renew extends the token, or obtains a new one, and returns when to do so
// again. A token that does not expire is looked at once in a while, for its
// file may have been replaced.
func (c *Client) Renew(ctx context.Context) (next time.Duration, err error) {
	const idle = 5 * time.Minute
	token, err := c.token(ctx, "")
	if err != nil {
		return 0, err
	}
	var a answer
	err = c.send(ctx, Request{Method: http.MethodPost, Path: "auth/token/renew-self", Body: map[string]string{}}, token, &a)
	status, refused := errors.AsType[*Error](err)
	switch {
	case errors.Is(err, ErrUnavailable):
		return 0, err
	case refused && status.Status == http.StatusBadRequest && c.o.AppRole == nil:
		return idle, nil // not renewable, a root token for instance
	case err != nil:
		// The token is gone, or cannot be extended any more.
		renewed, e := c.token(ctx, token)
		if e != nil {
			return 0, errors.Join(err, e)
		}
		if renewed == token {
			return 0, err
		}
		return c.next(ctx, idle)
	}
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if c.auth.token == token {
		err = c.adopt(&a, c.o.Now())
	}
	<-c.turn
	if err != nil {
		return 0, fmt.Errorf("renew the token: %w", err)
	}
	return c.next(ctx, idle)
}

// next is two thirds of the lease.
func (c *Client) next(ctx context.Context, idle time.Duration) (time.Duration, error) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if c.auth.lease == 0 {
		return idle, nil
	}
	return min(max(c.auth.lease*2/3, time.Second), 24*time.Hour), nil
}

// Run keeps the token alive until ctx ends. report is told of each failure; the
// next attempt follows after 1 second, later after up to 1 minute.
func (c *Client) Run(ctx context.Context, report func(context.Context, error)) error {
	pause, failures := time.Duration(0), 0
	for wait(ctx, pause) {
		next, err := c.Renew(ctx)
		if err == nil {
			failures, pause = 0, next
			continue
		}
		if ctx.Err() == nil {
			report(ctx, err)
		}
		failures = min(failures+1, 7)
		pause = min(time.Second<<(failures-1), time.Minute)
	}
	return nil
}

// wait returns false when ctx ends first.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
