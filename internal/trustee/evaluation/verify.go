package evaluation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/coffer-project/coffer/internal/trustee/appraisal"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee"
)

// verify has every piece of evidence verified, all at once, and returns what
// was found beside the initdata that was presented for it. The primary's
// result comes first, devices follow by TEE and in the order of their
// evidence. The first problem in that order is the answer.
func (e *Engine) verify(ctx context.Context, r Request) ([]appraisal.Part, []*InitData, *problem.Error) {
	if n := 1 + len(r.Devices); n > MaxIndividuals {
		return nil, nil, tooMany(n)
	}
	list := r.individuals()
	results := make([][]*tee.Result, len(list))
	problems := make([]*problem.Error, len(list))
	// The primary's turn is here: nearly always it is the only one, and a new
	// goroutine would first have to grow its stack.
	var wg sync.WaitGroup
	for i, x := range list[1:] {
		wg.Go(func() { results[i+1], problems[i+1] = e.verifyOne(ctx, x) })
	}
	results[0], problems[0] = e.verifyOne(ctx, list[0])
	wg.Wait()
	for _, p := range problems {
		if p != nil {
			return nil, nil, p
		}
	}
	if r.RuntimeLog != nil {
		if p := addRuntimeLog(results[0][0], r.RuntimeLog); p != nil {
			return nil, nil, p
		}
	}
	var parts []appraisal.Part
	var presented []*InitData
	for i, x := range list {
		for _, result := range results[i] {
			parts, presented = append(parts, part(r, x, result)), append(presented, x.InitData)
		}
	}
	return parts, presented, checkClasses(list, results, r.AnyClass)
}

func part(r Request, x Individual, result *tee.Result) appraisal.Part {
	p := appraisal.Part{Result: result, Runtime: x.Runtime}
	if p.Runtime == nil {
		p.Runtime = r.Runtime
	}
	if x.InitData != nil && x.InitData.Document != nil {
		p.InitData = appraisal.InitDataClaims(x.InitData.Document)
	}
	return p
}

// checkClasses makes sure that there is one CPU environment, the first. A
// second one's claims would stand beside those that the key is bound to.
func checkClasses(list []Individual, results [][]*tee.Result, anyClass bool) *problem.Error {
	if first := results[0][0]; first.Class != tee.CPU && !anyClass {
		return bad("primary evidence: expected a CPU environment, got %s of class %s", list[0].TEE, first.Class)
	}
	for i, x := range list {
		for j, result := range results[i] {
			if result.Class == tee.CPU && (i > 0 || j > 0) {
				return bad("additional evidence: %s is no device", x.TEE)
			}
		}
	}
	return nil
}

func (e *Engine) verifyOne(ctx context.Context, x Individual) ([]*tee.Result, *problem.Error) {
	verifier, ok := e.o.Verifiers[x.TEE]
	if !ok {
		return nil, problem.Denied(problem.Attestation, "this trustee does not accept the environment", kbs.Reason{
			Rule: "tee.enabled", Claim: "tee", Expected: fmt.Sprintf("one of %v", e.tees()), Got: string(x.TEE),
			Help: "enable the environment in the trustee's configuration, or attest without it",
		})
	}
	if len(x.ReportData) == 0 {
		return nil, problem.Internal(problem.Attestation, fmt.Errorf("no report data to compare the evidence of %s with", x.TEE))
	}
	wait, cancel := context.WithTimeout(ctx, e.o.MaxWait)
	defer cancel()
	place, ok := take(ctx, wait, e.slots)
	if !ok {
		return nil, problem.Busy(problem.Attestation, "too many attestations are being verified")
	}
	defer place.leave()
	want := tee.Expected{ReportData: x.ReportData}
	if x.InitData != nil {
		want.InitData = x.InitData.Digest
	}
	results, err := run(tee.WithWaiting(ctx, place.begin), verifier, x.Evidence, want)
	if refused, ok := errors.AsType[*tee.Error](err); ok {
		return nil, problem.Denied(problem.Attestation, string(x.TEE)+" evidence refused", reasons(refused.Failures, refused.Missing)...)
	}
	if lacking, ok := errors.AsType[*tee.UnavailableError](err); ok {
		return nil, unavailable(lacking)
	}
	if err != nil {
		return nil, notJudged(err)
	}
	if len(results) == 0 || len(results) > MaxIndividuals {
		return nil, nonsense(x.TEE, len(results))
	}
	for _, r := range results {
		if r == nil || r.TEE != x.TEE || r.Class == "" {
			return nil, nonsense(x.TEE, r)
		}
	}
	return results, nil
}

func run(ctx context.Context, v tee.Verifier, evidence json.RawMessage, want tee.Expected) ([]*tee.Result, error) {
	if m, ok := v.(tee.MultiVerifier); ok {
		return m.VerifyAll(ctx, evidence, want)
	}
	r, err := v.Verify(ctx, evidence, want)
	return []*tee.Result{r}, err
}
