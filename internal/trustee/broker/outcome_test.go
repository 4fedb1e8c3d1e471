package broker

import (
	"errors"
	"net/http"
	"testing"

	"github.com/coffer-project/coffer/internal/trustee/metrics"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/tee"
)

// TestOutcome: missing collateral is neither a refusal nor a failure.
func TestOutcome(t *testing.T) {
	t.Parallel()
	lacking := problem.Unavailable(problem.Attestation, "collateral", 0)
	lacking.Cause = &tee.UnavailableError{TEE: tee.SNP}
	for _, tc := range []struct {
		e    *problem.Error
		want metrics.Outcome
	}{
		{nil, metrics.OK},
		{problem.Denied(problem.Attestation, "forged"), metrics.Denied},
		{problem.New(http.StatusNotFound, problem.ResourceNotFound, "none"), metrics.NotFound},
		{lacking, metrics.Unavailable},
		{problem.Busy(problem.Attestation, "busy"), metrics.Failed},
		{problem.Internal(problem.Attestation, errors.New("cause")), metrics.Failed},
	} {
		if got := outcome(tc.e); got != tc.want {
			t.Errorf("%v: got %s, want %s", tc.e, got, tc.want)
		}
	}
}
