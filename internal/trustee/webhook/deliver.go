package webhook

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// maxRefusals is how often one event that the receiver calls malformed is sent.
const maxRefusals = 5

// maxDrain is how much of an answer's body is read, to use its connection again.
const maxDrain = 16 << 10

// refusal is a status other than 2xx.
type refusal struct {
	status int
	after  time.Duration
}

func (r *refusal) Error() string {
	if r.status >= 300 && r.status < 400 {
		return fmt.Sprintf("the receiver answered %d: redirects are not followed, configure where it points to", r.status)
	}
	return fmt.Sprintf("the receiver answered %d", r.status)
}

// malformed reports whether the receiver will never take this body.
func (r *refusal) malformed() bool {
	switch r.status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return true
	}
	return false
}

// deliver sends events until they are accepted or given up. It returns false
// when they are to be read again: in smaller batches, or by the replica that
// holds the lease now.
func (w *worker) deliver(ctx context.Context, t tenant.Name, events []Event) (bool, error) {
	if len(events) == 0 {
		return true, nil
	}
	body, id, err := w.encode(t, events)
	if err != nil {
		return false, err
	}
	first, refusals := w.o.Now(), 0
	for attempt := 0; ; attempt++ {
		err := w.post(ctx, body, id)
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		w.o.Observer.WebhookAttempt(err == nil)
		if err == nil {
			w.o.Observer.WebhookEvents(len(events), true)
			w.o.Observer.WebhookLag(time.Time{})
			w.batch = min(w.batch*2, maxBatch)
			return true, nil
		}
		w.o.Observer.WebhookLag(events[0].At)
		var after time.Duration
		if r, ok := errors.AsType[*refusal](err); ok {
			after = r.after
			if r.malformed() {
				refusals++
			}
		}
		if refusals > 0 && w.batch > 1 {
			w.log.WarnContext(ctx, "a delivery was refused; trying with fewer events", "tenant", string(t), "error", err, "events", len(events))
			w.batch = max(1, w.batch/4)
			return false, w.retry(ctx, attempt, after)
		}
		if refusals >= maxRefusals || w.o.Now().Sub(first) >= w.o.GiveUpAfter {
			w.log.ErrorContext(ctx, "events could not be delivered and are given up; the audit log has them",
				"tenant", string(t), "first", events[0].Seq, "last", events[len(events)-1].Seq, "attempts", attempt+1, "error", err)
			w.o.Observer.WebhookEvents(len(events), false)
			w.o.Observer.WebhookLag(time.Time{})
			return true, nil
		}
		if attempt == 0 || attempt%10 == 9 {
			w.log.WarnContext(ctx, "a delivery failed and will be repeated", "tenant", string(t), "error", err, "events", len(events), "attempt", attempt+1)
		}
		if err := w.retry(ctx, attempt, after); err != nil {
			return false, err
		}
		if ok, err := w.leased(ctx); err != nil || !ok {
			return false, err
		}
	}
}

func (w *worker) retry(ctx context.Context, attempt int, after time.Duration) error {
	w.wait(ctx, w.delay(attempt, after), nil)
	return ctx.Err()
}

// delay is the pause after a failed attempt: it doubles, at most to MaxDelay,
// and is spread over half of it so that replicas and webhooks do not beat in
// time. The receiver may ask for longer, within the same bound.
func (w *worker) delay(attempt int, after time.Duration) time.Duration {
	d := w.o.MaxDelay
	if attempt < 30 {
		d = min(d, w.o.MinDelay<<attempt)
	}
	d = d/2 + time.Duration(float64(d/2)*w.o.Jitter())
	return min(max(d, after), w.o.MaxDelay)
}

func (w *worker) encode(t tenant.Name, events []Event) ([]byte, string, error) {
	h := sha256.New()
	h.Write([]byte("coffer-webhook/v1\n" + w.e.Name + "\n" + string(t) + "\n"))
	for _, e := range events {
		h.Write([]byte(e.ID + "\n"))
	}
	id := hex.EncodeToString(h.Sum(nil)[:16])
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(Delivery{Version: 1, ID: id, Tenant: t, Events: events}); err != nil {
		return nil, "", fmt.Errorf("delivery: %w", err)
	}
	return b.Bytes(), id, nil
}

func (w *worker) post(ctx context.Context, body []byte, id string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.e.URL, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "coffer-trustee")
	req.Header.Set(DeliveryHeader, id)
	req.Header.Set(SignatureHeader, Sign(w.e.Secret, w.o.Now(), body))
	res, err := w.client.Do(req)
	if err != nil {
		// A URL's path can hold a receiver's token: the log gets the cause only.
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err
		}
		return err
	}
	defer res.Body.Close() //nolint:errcheck // its content does not matter
	_, _ = io.CopyN(io.Discard, res.Body, maxDrain)
	if res.StatusCode >= 200 && res.StatusCode < 300 {
		return nil
	}
	r := &refusal{status: res.StatusCode}
	if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && s > 0 && s < 1e6 {
		r.after = time.Duration(s) * time.Second
	}
	return r
}
