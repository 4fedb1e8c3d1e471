package evaluation

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/trustee/appraisal"
	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/tee"
)

// verifier answers with what a test says, or with evidence that is what it says.
type verifier struct {
	name  tee.Name
	class tee.Class
	check func(ctx context.Context, evidence json.RawMessage, want tee.Expected) (*tee.Result, error)
}

func (v verifier) TEE() tee.Name { return v.name }

func (v verifier) Verify(ctx context.Context, evidence json.RawMessage, want tee.Expected) (*tee.Result, error) {
	if v.check != nil {
		return v.check(ctx, evidence, want)
	}
	return &tee.Result{TEE: v.name, Class: v.class, ReportData: want.ReportData, InitData: make([]byte, 32), Claims: map[string]any{"evidence": string(evidence)}}, nil
}

// many has a result for each element of its evidence.
type many struct{ verifier }

func (m many) VerifyAll(_ context.Context, evidence json.RawMessage, want tee.Expected) ([]*tee.Result, error) {
	var classes []tee.Class
	if err := json.Unmarshal(evidence, &classes); err != nil {
		return nil, err
	}
	var out []*tee.Result
	for _, c := range classes {
		out = append(out, &tee.Result{TEE: m.name, Class: c, ReportData: want.ReportData, Claims: map[string]any{}})
	}
	return out, nil
}

type appraiser struct{ err error }

// Appraise copies what it got into the submodules' policy ids.
func (a appraiser) Appraise(_ context.Context, ev appraisal.Evidence) (appraisal.Results, error) {
	out := appraisal.Results{Submods: map[string]ear.Submod{}, Labels: map[string]string{}}
	for i, p := range ev.Parts {
		name := string(p.Result.TEE) + string('0'+rune(i))
		runtime, err := json.Marshal(p.Runtime)
		if err != nil {
			return out, err
		}
		out.Names = append(out.Names, name)
		out.Submods[name] = ear.Submod{Status: ear.Affirming, PolicyID: ev.PolicyID, Evidence: runtime}
		out.Labels[name] = "policy of " + name
	}
	return out, a.err
}

type tokens struct{ err error }

func (t tokens) MintPayload(_ context.Context, n tenant.Name, c ear.Claims) (string, json.RawMessage, error) {
	payload, err := json.Marshal(c)
	return string(n) + "/" + c.ID, payload, errors.Join(err, t.err)
}

func engine(o Options, verifiers ...tee.Verifier) *Engine {
	o.Verifiers = map[tee.Name]tee.Verifier{}
	for _, v := range verifiers {
		o.Verifiers[v.TEE()] = v
	}
	if o.Appraiser == nil {
		o.Appraiser = appraiser{}
	}
	if o.Tokens == nil {
		o.Tokens = tokens{}
	}
	if o.MaxConcurrent == 0 {
		o.MaxConcurrent = 4
	}
	return New(o)
}

func piece(name tee.Name, evidence string) Individual {
	return Individual{TEE: name, Evidence: json.RawMessage(evidence), ReportData: make([]byte, 48)}
}

func cpu(name tee.Name) verifier { return verifier{name: name, class: tee.CPU} }

func TestEvaluate(t *testing.T) {
	t.Parallel()
	e := engine(Options{Build: "b"}, cpu(tee.SNP), verifier{name: tee.SampleDevice, class: tee.GPU}, many{verifier{name: tee.NVIDIA}})
	device := piece(tee.SampleDevice, `1`)
	device.Runtime = map[string]any{"nonce": "own"}
	out, p := e.Evaluate(t.Context(), Request{
		Tenant: "acme", Session: "s", Protocol: "0.4.0", Policy: "strict", Runtime: map[string]any{"nonce": "n"},
		Primary: piece(tee.SNP, `1`),
		// Out of order on purpose.
		Devices: []Individual{device, piece(tee.NVIDIA, `["gpu","switch"]`)},
	})
	if p != nil {
		t.Fatal(p)
	}
	if out.Token != "acme/s" || out.PolicyLabel != "policy of snp0" || len(out.InitData) != 32 || out.Simulated || out.Claims.Protocol != "0.4.0" || out.Claims.VerifierID.Build != "b" {
		t.Errorf("got %+v", out)
	}
	for name, want := range map[string]string{"snp0": `{"nonce":"n"}`, "nvidia1": `{"nonce":"n"}`, "nvidia2": `{"nonce":"n"}`, "sampledevice3": `{"nonce":"own"}`} {
		if m, ok := out.Claims.Submods[name]; !ok || string(m.Evidence) != want || m.PolicyID != "strict" {
			t.Errorf("%s: got %+v", name, m)
		}
	}
	if !json.Valid(out.Payload) {
		t.Errorf("payload %s", out.Payload)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	digest := bytes.Repeat([]byte{7}, 48)
	noField := func(_ context.Context, _ json.RawMessage, want tee.Expected) (*tee.Result, error) {
		return &tee.Result{TEE: tee.SE, Class: tee.CPU, ReportData: want.ReportData, Simulated: true}, nil
	}
	fail := func(err error) func(context.Context, json.RawMessage, tee.Expected) (*tee.Result, error) {
		return func(context.Context, json.RawMessage, tee.Expected) (*tee.Result, error) { return nil, err }
	}
	refused := &tee.Error{TEE: tee.CCA, Failures: []tee.Failure{{Check: "cca.signature", Field: "signature", Expected: "a", Got: "b"}, {Check: "cca.second", Field: "f"}}}
	e := engine(Options{},
		cpu(tee.SNP), verifier{name: tee.SE, class: tee.CPU, check: noField},
		verifier{name: tee.CCA, check: fail(refused)}, verifier{name: tee.TDX, check: fail(errors.New("collateral is out of reach"))},
		verifier{name: tee.TPM, check: fail(nil)}, verifier{name: tee.CSV, class: ""},
		verifier{name: tee.SGX, check: func(context.Context, json.RawMessage, tee.Expected) (*tee.Result, error) {
			return &tee.Result{TEE: tee.SNP, Class: tee.CPU}, nil
		}},
		verifier{name: tee.SampleDevice, class: tee.GPU}, many{verifier{name: tee.NVIDIA}},
	)
	with := func(name tee.Name, id *InitData) Individual {
		x := piece(name, `[]`)
		x.InitData = id
		return x
	}
	tooMany := make([]Individual, MaxIndividuals)
	for _, tc := range []struct {
		name   string
		r      Request
		status int
		rule   string
		detail string
		// learned: the outcome says something of the environment.
		learned bool
	}{
		{name: "unknown TEE", r: Request{Primary: piece("other", `1`)}, status: http.StatusForbidden, rule: "tee.enabled"},
		{name: "unknown device", r: Request{Primary: piece(tee.SNP, `1`), Devices: []Individual{piece("other", `1`)}}, status: http.StatusForbidden, rule: "tee.enabled"},
		{name: "refused", r: Request{Primary: piece(tee.CCA, `1`)}, status: http.StatusForbidden, rule: "cca.signature", detail: "cca.second"},
		{name: "refused device", r: Request{Primary: piece(tee.SNP, `1`), Devices: []Individual{piece(tee.CCA, `1`)}}, status: http.StatusForbidden, rule: "cca.signature"},
		{name: "not judged", r: Request{Primary: piece(tee.TDX, `1`)}, status: http.StatusServiceUnavailable, detail: "try again"},
		{name: "nil result", r: Request{Primary: piece(tee.TPM, `1`)}, status: http.StatusInternalServerError},
		{name: "no class", r: Request{Primary: piece(tee.CSV, `1`)}, status: http.StatusInternalServerError},
		{name: "other TEE's result", r: Request{Primary: piece(tee.SGX, `1`)}, status: http.StatusInternalServerError},
		{name: "no results", r: Request{Primary: piece(tee.SNP, `1`), Devices: []Individual{piece(tee.NVIDIA, `[]`)}}, status: http.StatusInternalServerError},
		{name: "no report data", r: Request{Primary: Individual{TEE: tee.SNP, Evidence: json.RawMessage(`1`)}}, status: http.StatusInternalServerError},
		{name: "device as primary", r: Request{Primary: piece(tee.SampleDevice, `1`)}, status: http.StatusBadRequest, detail: "expected a CPU environment"},
		{name: "CPU as device", r: Request{Primary: piece(tee.SNP, `1`), Devices: []Individual{piece(tee.SNP, `1`)}}, status: http.StatusBadRequest, detail: "snp is no device"},
		{name: "CPU among a device's results", r: Request{Primary: piece(tee.SNP, `1`), Devices: []Individual{piece(tee.NVIDIA, `["gpu","cpu"]`)}}, status: http.StatusBadRequest, detail: "no device"},
		{name: "second CPU, any class", r: Request{AnyClass: true, Primary: piece(tee.SampleDevice, `1`), Devices: []Individual{piece(tee.SNP, `1`)}}, status: http.StatusBadRequest, detail: "no device"},
		{name: "initdata", r: Request{Primary: with(tee.SNP, &InitData{Digest: digest})}, status: http.StatusForbidden, rule: "initdata.digest", learned: true},
		{name: "initdata without a field", r: Request{Primary: with(tee.SE, &InitData{Digest: digest})}, status: http.StatusForbidden, rule: "initdata.digest", learned: true},
		{name: "initdata of a device", r: Request{Primary: piece(tee.SNP, `1`), Devices: []Individual{with(tee.SampleDevice, &InitData{Digest: digest})}}, status: http.StatusForbidden, rule: "initdata.digest", learned: true},
		{name: "empty digest", r: Request{Primary: with(tee.SNP, &InitData{})}, status: http.StatusForbidden, rule: "initdata.digest", learned: true},
		{name: "too many", r: Request{Primary: piece(tee.SNP, `1`), Devices: tooMany}, status: http.StatusBadRequest, detail: "at most"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			out, p := e.Evaluate(t.Context(), tc.r)
			if p == nil {
				t.Fatalf("got %+v, want an error", out)
			}
			if p.Status != tc.status || !strings.Contains(p.Info.Detail, tc.detail) || (p.Info.Reason == nil) != (tc.rule == "") {
				t.Errorf("got %v", p)
			}
			if tc.rule != "" && p.Info.Reason.Rule != tc.rule {
				t.Errorf("rule: got %s, want %s", p.Info.Reason.Rule, tc.rule)
			}
			if (out != nil) != tc.learned || out != nil && out.Token != "" {
				t.Errorf("outcome %+v", out)
			}
			if tc.learned && out.Simulated != (tc.r.Primary.TEE == tee.SE) {
				t.Errorf("outcome %+v", out)
			}
		})
	}
}

func TestInitDataBound(t *testing.T) {
	t.Parallel()
	raw := []byte("version = \"0.1.0\"\nalgorithm = \"sha384\"\n[data]\n\"a.toml\" = \"x = 1\"\n")
	doc, err := initdata.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	_, digest, err := initdata.Digest(raw)
	if err != nil {
		t.Fatal(err)
	}
	var seen appraisal.Part
	e := engine(Options{Appraiser: appraiseFunc(func(ev appraisal.Evidence) { seen = ev.Parts[0] })}, verifier{name: tee.SNP, check: func(_ context.Context, _ json.RawMessage, want tee.Expected) (*tee.Result, error) {
		return &tee.Result{TEE: tee.SNP, Class: tee.CPU, InitData: tee.Fit(want.InitData, 32)}, nil
	}})
	x := piece(tee.SNP, `1`)
	x.InitData = &InitData{Digest: digest, Document: doc}
	if _, p := e.Evaluate(t.Context(), Request{Primary: x}); p != nil {
		t.Fatal(p)
	}
	if _, ok := seen.InitData["a.toml"]; !ok {
		t.Errorf("claims %v", seen.InitData)
	}
	x.InitData.Document = nil
	if _, p := e.Evaluate(t.Context(), Request{Primary: x}); p != nil || seen.InitData != nil {
		t.Errorf("digest alone: %v, claims %v", p, seen.InitData)
	}
}

type appraiseFunc func(appraisal.Evidence)

func (f appraiseFunc) Appraise(ctx context.Context, ev appraisal.Evidence) (appraisal.Results, error) {
	f(ev)
	return appraiser{}.Appraise(ctx, ev)
}

func TestInnerFailures(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]Options{
		"policy": {Appraiser: appraiser{err: errors.New("boom")}},
		"token":  {Tokens: tokens{err: errors.New("boom")}},
	} {
		out, p := engine(o, cpu(tee.SNP)).Evaluate(t.Context(), Request{Primary: piece(tee.SNP, `1`)})
		if p == nil || p.Status != http.StatusInternalServerError || strings.Contains(p.Info.Detail, "boom") || out == nil || len(out.InitData) == 0 {
			t.Errorf("%s: got %+v, %v", name, out, p)
		}
	}
}

// Verifications run side by side, never more than are allowed; one that waits
// too long is told to come again.
func TestSlots(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var running, most atomic.Int32
		slow := func(ctx context.Context, _ json.RawMessage, want tee.Expected) (*tee.Result, error) {
			n := running.Add(1)
			defer running.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			select {
			case <-time.After(6 * time.Second): // of the bubble's own clock
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			return &tee.Result{TEE: tee.NVIDIA, Class: tee.GPU, ReportData: want.ReportData}, nil
		}
		e := engine(Options{MaxConcurrent: 3}, cpu(tee.SNP), verifier{name: tee.NVIDIA, check: slow})
		start := time.Now()
		r := Request{Primary: piece(tee.SNP, `1`), Devices: slices.Repeat([]Individual{piece(tee.NVIDIA, `1`)}, 5)}
		if _, p := e.Evaluate(t.Context(), r); p != nil {
			t.Fatal(p)
		}
		if d := time.Since(start); d != 12*time.Second || most.Load() != 3 {
			t.Errorf("took %v with at most %d at once, want 12s with 3", d, most.Load())
		}
		r.Devices = slices.Repeat(r.Devices, 2)
		if _, p := e.Evaluate(t.Context(), r); p == nil || p.Status != http.StatusServiceUnavailable || p.RetryAfter == 0 {
			t.Errorf("got %v, want 503", p)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, p := e.Evaluate(ctx, r); p == nil || p.Status != http.StatusServiceUnavailable {
			t.Errorf("cancelled: got %v", p)
		}
	})
}

// TestMissingCollateral: the client learns what is missing and when to come
// again, and nothing of where it was looked for; evidence that is refused for
// something else, likewise.
func TestMissingCollateral(t *testing.T) {
	t.Parallel()
	const secretPlace = "https://pccs.intern.example:8081"
	crl := &tee.CollateralError{Item: "AMD's VCEK revocation list of Milan", Source: secretPlace, Reason: tee.CollateralThrottled, RetryAfter: time.Minute, Err: errors.New("dial tcp 10.1.2.3:8081")}
	other := errors.New("open /var/lib/private: permission denied")
	missing := []tee.Failure{
		{Check: "snp.collateral", Field: "crl", Expected: crl.Item, Got: crl.Error(), Help: crl.Help()},
		{Check: "snp.collateral", Field: "vcek", Got: other.Error()},
		{Check: "snp.rim", Field: "rim", Got: "a name of the evidence's"},
	}
	fail := func(name tee.Name, err error) verifier {
		return verifier{name: name, check: func(context.Context, json.RawMessage, tee.Expected) (*tee.Result, error) { return nil, err }}
	}
	causes := errors.Join(fmt.Errorf("wrapped: %w", crl), other)
	forged := tee.Failure{Check: "cca.signature", Field: "signature"}
	e := engine(Options{},
		fail(tee.SNP, &tee.UnavailableError{TEE: tee.SNP, Failures: missing, Err: causes}),
		fail(tee.CCA, &tee.Error{TEE: tee.CCA, Failures: append([]tee.Failure{forged}, missing...), Missing: causes}),
		fail(tee.TDX, &tee.UnavailableError{TEE: tee.TDX, Failures: missing[2:]}),
	)
	for name, want := range map[tee.Name]struct {
		status int
		retry  time.Duration
		rule   string
	}{
		tee.SNP: {http.StatusServiceUnavailable, time.Minute, "snp.collateral"},
		tee.CCA: {http.StatusForbidden, 0, "cca.signature"},
		tee.TDX: {http.StatusServiceUnavailable, leastRetry, "snp.rim"},
	} {
		_, p := e.Evaluate(t.Context(), Request{Primary: piece(name, `1`)})
		if p == nil || p.Status != want.status || p.RetryAfter != want.retry || p.Info.Reason == nil || p.Info.Reason.Rule != want.rule {
			t.Errorf("%s: got %+v", name, p)
			continue
		}
		doc, err := json.Marshal(p.Info)
		if err != nil {
			t.Fatal(err)
		}
		for _, leak := range []string{"pccs", "10.1.2.3", "/var/lib", "denied:"} {
			if strings.Contains(string(doc), leak) {
				t.Errorf("%s: %q is in %s", name, leak, doc)
			}
		}
		if name != tee.TDX && (!strings.Contains(string(doc), `"got":"throttled"`) || !strings.Contains(string(doc), crl.Item)) {
			t.Errorf("%s: %s", name, doc)
		}
		if !strings.Contains(string(doc), "a name of the evidence's") {
			t.Errorf("%s: %s", name, doc)
		}
		// The log and the metrics learn more.
		_, lacking := errors.AsType[*tee.UnavailableError](p)
		if lacking != (name != tee.CCA) || name == tee.SNP && !strings.Contains(p.Error(), secretPlace) {
			t.Errorf("%s: %v", name, p)
		}
	}
}
