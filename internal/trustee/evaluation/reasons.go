package evaluation

import (
	"errors"
	"fmt"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee"
)

// When a guest may try again whose evidence lacks collateral. What failed is
// not asked for again before the lesser of them has passed
// (collateral.DefaultNegative).
const (
	leastRetry = 10 * time.Second
	mostRetry  = 5 * time.Minute
)

// unavailable is the answer where nothing speaks against the evidence, but it
// could not be judged for want of collateral: a 503 that names what is missing.
func unavailable(err *tee.UnavailableError) *problem.Error {
	after := leastRetry
	for _, cause := range joined(err.Err) {
		if c, ok := errors.AsType[*tee.CollateralError](cause); ok {
			after = max(after, c.RetryAfter)
		}
	}
	what := fmt.Sprintf("%s evidence could not be judged, try again: collateral is missing", err.TEE)
	p := problem.Unavailable(problem.Attestation, what, min(after, mostRetry), reasons(err.Failures, err.Err)...)
	p.Cause = err
	return p
}

// reasons are failures as a client may read them. Where one is about collateral
// that could not be had, the error behind it names servers, proxies and files
// of the operator's: the client learns what is missing and in which way, the
// log has the rest.
func reasons(failures []tee.Failure, missing error) []kbs.Reason {
	private := map[string]string{}
	for _, cause := range joined(missing) {
		private[cause.Error()] = "none"
		if c, ok := errors.AsType[*tee.CollateralError](cause); ok {
			private[cause.Error()], private[c.Error()] = string(c.Reason), string(c.Reason)
		}
	}
	out := make([]kbs.Reason, 0, len(failures))
	for _, f := range failures {
		r := kbs.Reason{Rule: f.Check, Claim: f.Field, Expected: f.Expected, Got: f.Got, Help: f.Help}
		if public, ok := private[f.Got]; ok {
			r.Got = public
		}
		out = append(out, r)
	}
	return out
}

// joined are the errors that errors.Join made one of.
func joined(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}
