package broker

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/trustee/appraisal"
	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee"
)

// maxWait is how long an attestation waits for its turn to be verified.
const maxWait = 10 * time.Second

// again is the one kind of 401: the guest has to run the handshake anew.
func again(why string) *problem.Error {
	return problem.New(http.StatusUnauthorized, problem.Attestation, "%s: start with POST %s", why, kbs.AuthPath)
}

// attest verifies and appraises evidence and answers with a token. Whatever
// comes of it, the session's nonce is used up: new evidence never gets an
// old token, and old evidence no second look.
func (b *Broker) attest(w http.ResponseWriter, r *http.Request) (any, *problem.Error) {
	ctx := r.Context()
	cookie := sessionCookie(r)
	if cookie == "" {
		return nil, again("there is no " + kbs.SessionCookie + " cookie")
	}
	const stale = "the session is unknown, expired or used up"
	x, err := b.o.Store.OpenSession(ctx, store.SessionID(cookie))
	if errors.Is(err, store.ErrNotFound) {
		return nil, again(stale)
	}
	if err != nil {
		return nil, problem.Internal(problem.Storage, err)
	}
	body, e := problem.Body(w, r, min(b.o.MaxBody, kbs.MaxAttestationBytes))
	if e != nil {
		return nil, e
	}
	att, err := kbs.ParseAttestation(kbs.Version(x.Protocol), body)
	if err != nil {
		// The nonce is still good: nothing was judged.
		return nil, problem.New(http.StatusBadRequest, problem.Serde, "%v", err)
	}
	if e := checkKey(att); e != nil {
		return nil, e
	}
	if x, err = b.o.Store.TakeSession(ctx, x.ID); errors.Is(err, store.ErrNotFound) {
		return nil, again(stale)
	} else if err != nil {
		return nil, problem.Internal(problem.Storage, err)
	}

	v := store.Verdict{Kind: store.KindAttestation, TEE: x.TEE, Session: x.ID}
	token, e := b.judge(ctx, x, att, &v)
	if e != nil {
		b.record(ctx, v, e.Status, e.Info.Reason, e.Info.Detail)
		return nil, e
	}
	b.setCookie(w, cookie, x.Expires)
	return kbs.TokenResponse{Token: token}, nil
}

// checkKey refuses a key that no response could be encrypted to.
func checkKey(att *kbs.Attestation) *problem.Error {
	if err := att.TEEKey.Validate(); err != nil {
		return problem.New(http.StatusBadRequest, problem.Serde, "tee-pubkey: %v", err)
	}
	if legacy := isLegacy(att.Version); legacy != (att.TEEKey.Alg == kbs.AlgRSA15) {
		return problem.New(http.StatusBadRequest, problem.Serde,
			"tee-pubkey: alg: protocol %s: expected %s, got %s", att.Version, algorithms(legacy), att.TEEKey.Alg)
	}
	return nil
}

func algorithms(legacy bool) string {
	if legacy {
		return kbs.AlgRSA15
	}
	return kbs.AlgECDH + " or " + kbs.AlgOAEP
}

// judge does everything between taking the session and answering. It fills in
// the verdict as it learns, and records it where it grants.
func (b *Broker) judge(ctx context.Context, x store.Session, att *kbs.Attestation, v *store.Verdict) (string, *problem.Error) {
	if att.Nonce != "" && att.Nonce != x.Nonce {
		return "", problem.Denied(problem.Attestation, "the evidence is not of this handshake", kbs.Reason{
			Rule: "session.nonce", Claim: "runtime-data.nonce", Expected: x.Nonce, Got: clip(att.Nonce),
			Help: "the attestation answers the challenge of another handshake (replayed?): attest with the nonce of this one",
		})
	}
	doc, digest, e := initData(att)
	if e != nil {
		return "", e
	}
	results, e := b.verify(ctx, x, att, digest)
	if e != nil {
		return "", e
	}
	primary := results[0]
	v.InitData, v.Simulated = hex.EncodeToString(primary.InitData), anySimulated(results)
	// The verifier has compared already; environments without such a field end here.
	if digest != nil && !initdata.MatchesField(digest, primary.InitData) {
		return "", problem.Denied(problem.Attestation, "the initdata is not what the environment was launched with", kbs.Reason{
			Rule: "initdata.digest", Claim: "init_data", Expected: hex.EncodeToString(digest), Got: orNone(hex.EncodeToString(primary.InitData)),
			Help: "present the initdata whose digest is in the launch evidence, byte for byte, or none",
		})
	}
	var sr sessionRequest
	if err := json.Unmarshal(x.Request, &sr); err != nil {
		return "", problem.Internal(problem.Storage, fmt.Errorf("stored session request: %w", err))
	}
	ev := appraisal.Evidence{Results: results, Nonce: x.Nonce, Key: att.TEEKey, Additional: att.Additional, PolicyID: sr.Policy}
	if doc != nil {
		ev.InitData = appraisal.InitDataClaims(doc)
	}
	submods, err := b.o.Appraiser.Appraise(ctx, ev)
	if err != nil {
		return "", problem.Internal(problem.PolicyEngine, err)
	}
	claims := ear.Claims{
		ID: x.ID, Protocol: x.Protocol, Submods: submods,
		VerifierID: ear.VerifierID{Developer: "https://github.com/coffer-project/coffer", Build: b.o.Build},
	}
	token, err := b.o.Tokens.Mint(claims)
	if err != nil {
		return "", problem.Internal(problem.Attestation, err)
	}
	v.Granted, v.Status, v.EARStatus, v.AllowSimulated = true, http.StatusOK, string(claims.Status()), b.o.AllowSimulated
	v.Claims, v.PolicyID = verdictClaims(submods), submods[ear.CPU].PolicyID
	if err := b.o.Store.FinishSession(ctx, x.ID, token, *v); err != nil {
		v.Granted = false
		return "", problem.Internal(problem.Storage, err)
	}
	b.o.Logger.InfoContext(ctx, "attested", "session", x.ID, "tee", x.TEE, "status", v.EARStatus, "simulated", v.Simulated, "initdata", v.InitData)
	return token, nil
}

// initData parses initdata that the guest presented and returns its digest;
// both are nil when it presented none.
func initData(att *kbs.Attestation) (*initdata.Document, []byte, *problem.Error) {
	if att.InitData == nil {
		return nil, nil, nil
	}
	if att.InitData.Format != "toml" {
		return nil, nil, problem.New(http.StatusBadRequest, problem.Serde, "init-data: format: expected \"toml\", got %q", clip(att.InitData.Format))
	}
	raw := []byte(att.InitData.Body)
	doc, err := initdata.Parse(raw)
	if err != nil {
		return nil, nil, problem.New(http.StatusBadRequest, problem.Serde, "init-data: %v", err)
	}
	_, digest, err := initdata.Digest(raw)
	if err != nil {
		return nil, nil, problem.New(http.StatusBadRequest, problem.Serde, "init-data: %v", err)
	}
	return doc, digest, nil
}

// verify has the primary evidence and every device's verified; the primary
// result comes first, devices follow by name.
func (b *Broker) verify(ctx context.Context, x store.Session, att *kbs.Attestation, digest []byte) ([]*tee.Result, *problem.Error) {
	wait, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	select {
	case b.slots <- struct{}{}:
		defer func() { <-b.slots }()
	case <-wait.Done():
		return nil, problem.Busy(problem.Attestation, "too many attestations are being verified")
	}
	primary, err := att.Digest("", x.Nonce)
	if err != nil {
		return nil, problem.New(http.StatusBadRequest, problem.Serde, "%v", err)
	}
	first, e := b.verifyOne(ctx, tee.Name(x.TEE), att.Evidence, tee.Expected{ReportData: primary, InitData: digest})
	if e != nil {
		return nil, e
	}
	if first.Class != tee.CPU {
		return nil, problem.New(http.StatusBadRequest, problem.Attestation, "primary evidence: expected a CPU environment, got %s of class %s", x.TEE, first.Class)
	}
	results := []*tee.Result{first}
	devices, err := att.Devices()
	if err != nil {
		return nil, problem.New(http.StatusBadRequest, problem.Serde, "%v", err)
	}
	for _, name := range slices.Sorted(maps.Keys(devices)) {
		want, err := att.DeviceDigest("", x.Nonce)
		if err != nil {
			return nil, problem.New(http.StatusBadRequest, problem.Serde, "%v", err)
		}
		r, e := b.verifyOne(ctx, name, devices[name], tee.Expected{ReportData: want})
		if e != nil {
			return nil, e
		}
		// A second CPU result would take the place of the one the key is bound to.
		if r.Class == tee.CPU {
			return nil, problem.New(http.StatusBadRequest, problem.Attestation, "additional evidence: %s is no device", name)
		}
		results = append(results, r)
	}
	return results, nil
}

func (b *Broker) verifyOne(ctx context.Context, name tee.Name, evidence json.RawMessage, want tee.Expected) (*tee.Result, *problem.Error) {
	verifier, ok := b.o.Verifiers[name]
	if !ok {
		return nil, problem.Denied(problem.Attestation, "this trustee does not accept the environment", kbs.Reason{
			Rule: "tee.enabled", Claim: "tee", Expected: fmt.Sprintf("one of %v", b.tees()), Got: string(name),
			Help: "enable the environment in the trustee's configuration, or attest without it",
		})
	}
	r, err := verifier.Verify(ctx, evidence, want)
	if refused, ok := errors.AsType[*tee.Error](err); ok {
		reasons := make([]kbs.Reason, 0, len(refused.Failures))
		for _, f := range refused.Failures {
			reasons = append(reasons, kbs.Reason{Rule: f.Check, Claim: f.Field, Expected: f.Expected, Got: f.Got, Help: f.Help})
		}
		return nil, problem.Denied(problem.Attestation, string(name)+" evidence refused", reasons...)
	}
	if err != nil {
		// Not judged, for example because collateral could not be fetched.
		e := problem.Busy(problem.Attestation, "the evidence could not be judged")
		e.Cause = err
		return nil, e
	}
	if r == nil || r.TEE != name || r.Class == "" {
		return nil, problem.Internal(problem.Attestation, fmt.Errorf("verifier of %s returned a result of %+v", name, r))
	}
	return r, nil
}

func anySimulated(results []*tee.Result) bool {
	return slices.ContainsFunc(results, func(r *tee.Result) bool { return r.Simulated })
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// clip keeps text of the other side short in answers and records.
func clip(s string) string {
	if len(s) > 128 {
		return s[:128] + "…"
	}
	return s
}
