package trustee

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/evaluation"
	"github.com/coffer-project/coffer/internal/trustee/metrics"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/tee"
)

// Counting is not the business of what is counted: it stands in between.

// observer is the store's.
type observer struct{ m *metrics.Metrics }

// Operation implements store.Observer.
func (o observer) Operation(kind string, took time.Duration, err error) {
	o.m.Store(kind, outcomeOf(err), took)
}

// Retry implements store.Observer.
func (o observer) Retry() { o.m.StoreRetry() }

// Batch implements store.Observer.
func (o observer) Batch(records int) { o.m.StoreBatch(records) }

// outcomeOf tells answers from failures.
func outcomeOf(err error) metrics.Outcome {
	switch {
	case err == nil:
		return metrics.OK
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrNoTenant), errors.Is(err, resource.ErrNotFound):
		return metrics.NotFound
	case errors.Is(err, store.ErrUsed), errors.Is(err, store.ErrExists), errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrFull):
		return metrics.Denied
	}
	return metrics.Failed
}

// judged counts what the attestation service is asked to judge.
type judged struct {
	*evaluation.Engine

	m   *metrics.Metrics
	now func() time.Time
}

func (j judged) Evaluate(ctx context.Context, r evaluation.Request) (*evaluation.Outcome, *problem.Error) {
	j.m.AttestationRequest()
	defer j.m.VerificationStarted()()
	start := j.now()
	out, e := j.Engine.Evaluate(ctx, r)
	outcome := metrics.OK
	if e != nil {
		outcome = metrics.Denied
		if _, lacking := errors.AsType[*tee.UnavailableError](e); lacking {
			outcome = metrics.Unavailable
		} else if e.Status >= http.StatusInternalServerError {
			outcome = metrics.Failed
		}
	}
	j.m.Attestation(r.Primary.TEE, outcome, j.now().Sub(start))
	return out, e
}

// counted counts what administrators do to resources. What guests read is
// counted where it is decided.
type counted struct {
	resource.Backend

	m *metrics.Metrics
}

func (c counted) Put(ctx context.Context, t tenant.Name, p resource.Path, content secret.Bytes) (int64, error) {
	v, err := c.Backend.Put(ctx, t, p, content)
	c.m.ResourceWrite(outcomeOf(err))
	return v, err
}

func (c counted) Delete(ctx context.Context, t tenant.Name, p resource.Path) (bool, error) {
	found, err := c.Backend.Delete(ctx, t, p)
	o := outcomeOf(err)
	if err == nil && !found {
		o = metrics.NotFound
	}
	c.m.ResourceDelete(o)
	return found, err
}
