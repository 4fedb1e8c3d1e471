package kbs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// How often and how long a client tries.
const (
	maxAttempts   = 5
	firstDelay    = 200 * time.Millisecond
	maxDelay      = 5 * time.Second
	maxRetryAfter = 30 * time.Second
)

// retry calls f until it succeeds, fails for a reason that will not pass, or
// has been tried often enough. The broker's own wish (Retry-After) overrides
// the growing delay, within limits. Where an exchange broke off, it is tried
// once more: another replica may be there to answer.
func (c *Client) retry(ctx context.Context, f func() error) error {
	delay := firstDelay
	broken := false
	for attempt := 1; ; attempt++ {
		err := f()
		if err == nil {
			return nil
		}
		if !temporary(err) {
			if broken || ctx.Err() != nil || !brokeOff(err) {
				return err
			}
			broken = true
		}
		if attempt == maxAttempts {
			return fmt.Errorf("%w (given up after %d attempts)", err, maxAttempts)
		}
		// Pods that were refused together shall not come back together.
		d := delay/2 + rand.N(delay/2)
		if se, ok := errors.AsType[*StatusError](err); ok && se.RetryAfter > 0 {
			d = min(se.RetryAfter, maxRetryAfter)
		}
		c.log.DebugContext(ctx, "broker not ready, waiting", "attempt", attempt, "delay", d, "error", err.Error())
		if werr := c.wait(ctx, d); werr != nil {
			return fmt.Errorf("%w (last answer: %w)", werr, err)
		}
		delay = min(2*delay, maxDelay)
	}
}

// temporary tells whether trying again can help: the broker is overloaded, or
// it or the network is not up yet.
func temporary(err error) bool {
	if se, ok := errors.AsType[*StatusError](err); ok {
		return se.Status == http.StatusTooManyRequests || se.Status == http.StatusServiceUnavailable
	}
	if de, ok := errors.AsType[*net.DNSError](err); ok {
		return de.IsTemporary
	}
	// There was no connection in its time, so nothing has been asked: a guest on a
	// busy node may be that slow.
	if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Op == "dial" && dial.Timeout() {
		return true
	}
	for _, e := range []syscall.Errno{syscall.ECONNREFUSED, syscall.ENETUNREACH, syscall.EHOSTUNREACH} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// brokeOff tells whether an exchange ended without the broker's answer: the
// connection did, or what stands before the broker says that it does not
// answer. What the broker may have done by then does no harm: a handshake is
// repeated from its beginning, and reading a resource changes nothing.
func brokeOff(err error) bool {
	if se, ok := errors.AsType[*StatusError](err); ok {
		return se.Status == http.StatusBadGateway || se.Status == http.StatusGatewayTimeout
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return false // the whole of the request's time has been spent
	}
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE, syscall.ETIMEDOUT} {
		if errors.Is(err, e) {
			return true
		}
	}
	// The transport's own words for it have no other form.
	return strings.Contains(err.Error(), "server closed idle connection")
}

// wait sleeps for d or until ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// parseRetryAfter reads the header's form in seconds; the form with a date,
// which needs both clocks to agree, and anything else is 0.
func parseRetryAfter(s string) time.Duration {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0
	}
	return time.Duration(n) * time.Second
}
