package broker

import (
	"context"
	"encoding/hex"
	"errors"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/evaluation"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/session"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee"
)

const (
	// keepUsed is how long a nonce is known to be used after its session has
	// expired: replicas' clocks differ, and may be set back.
	keepUsed = 15 * time.Minute
	// recordTimeout bounds the recording of a refusal whose client may be gone.
	recordTimeout = 30 * time.Second
)

// again is the one kind of 401: the guest has to run the handshake anew.
func again(why string) *problem.Error {
	return problem.New(http.StatusUnauthorized, problem.Attestation, "%s: start with POST %s", why, kbs.AuthPath)
}

// stale does not tell a forged cookie from an old one, or from another tenant's.
const stale = "the session is unknown, expired or used up"

// attest verifies and appraises evidence and answers with a token. Whatever
// comes of it, the session's nonce is used up: new evidence never gets an
// old token, and old evidence no second look.
func (b *Broker) attest(w http.ResponseWriter, r *http.Request) (any, *problem.Error) {
	ctx := r.Context()
	t := tenant.Of(ctx)
	cookie := sessionCookie(r)
	if cookie == "" {
		return nil, again("there is no " + kbs.SessionCookie + " cookie")
	}
	s, err := b.o.Sessions.Open(t, cookie)
	if err != nil {
		return nil, again(stale)
	}
	leave, ok := b.enter(s)
	if !ok {
		return nil, again(stale)
	}
	defer leave()
	// Finish decides; this spares the work where the answer is known.
	if used, err := b.o.Store.SessionUsed(ctx, t, s.ID); err != nil {
		return nil, failure(err)
	} else if used {
		return nil, again(stale)
	}
	body, e := problem.Body(w, r, min(b.o.MaxBody, kbs.MaxAttestationBytes))
	if e != nil {
		return nil, e
	}
	att, err := kbs.ParseAttestation(s.Protocol, body)
	if err != nil {
		// The nonce is still good: nothing was judged.
		return nil, problem.New(http.StatusBadRequest, problem.Serde, "%v", err)
	}
	if e := checkKey(att); e != nil {
		return nil, e
	}
	token, e := b.conclude(r, s, att)
	if e != nil {
		return nil, e
	}
	b.setCookie(w, t, cookie, s.Expires)
	return kbs.TokenResponse{Token: token}, nil
}

// enter keeps a session's evidence from being judged twice at once. Between
// replicas only one verdict can be recorded, which is what counts.
func (b *Broker) enter(s *session.Session) (leave func(), ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, busy := b.judging[s.ID]; busy {
		return nil, false
	}
	b.judging[s.ID] = struct{}{}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.judging, s.ID)
	}, true
}

// checkKey refuses a key that no response could be encrypted to. What was
// not in the first protocol's responses is not in their keys.
func checkKey(att *kbs.Attestation) *problem.Error {
	if err := att.TEEKey.Validate(); err != nil {
		return problem.New(http.StatusBadRequest, problem.Serde, "tee-pubkey: %v", err)
	}
	if isLegacy(att.Version) && att.TEEKey.Alg != kbs.AlgRSA15 {
		return problem.New(http.StatusBadRequest, problem.Serde,
			"tee-pubkey: alg: protocol %s: expected %s, got %s", att.Version, kbs.AlgRSA15, att.TEEKey.Alg)
	}
	return nil
}

// conclude judges, and uses the nonce up together with the record of the
// verdict. There is no token without it, and no verdict either.
func (b *Broker) conclude(r *http.Request, s *session.Session, att *kbs.Attestation) (string, *problem.Error) {
	ctx := r.Context()
	rec := b.newRecord(r, audit.KindAttestation, func(x *audit.Record) {
		x.TEE, x.Session, x.Challenged, x.Protocol = string(s.TEE), s.ID, s.Created, string(s.Protocol)
	})
	start := b.o.Now()
	done := b.o.Metrics.VerificationStarted()
	out, e := b.judge(ctx, s, att)
	done()
	if out != nil {
		rec.InitData, rec.Simulated, rec.Policy = hex.EncodeToString(out.InitData), out.Simulated, out.PolicyLabel
	}
	end := store.Finished{Session: s.ID, Expires: s.Expires.Add(keepUsed)}
	if e == nil {
		end.Token = out.Token
		rec.Granted, rec.Status, rec.EARStatus = true, http.StatusOK, string(out.Claims.Status())
		rec.Claims = recordClaims(out.Payload)
	} else {
		refuse(&rec, e)
		// The client may be gone; the nonce is used up all the same.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
		defer cancel()
	}
	b.o.Metrics.Attestation(s.TEE, outcome(e), b.o.Now().Sub(start))
	switch err := b.o.Store.Finish(ctx, s.Tenant, end, rec); {
	case errors.Is(err, store.ErrUsed):
		return "", again(stale)
	case err != nil:
		b.o.Logger.ErrorContext(ctx, "verdict could not be recorded", "session", s.ID, "granted", rec.Granted, "detail", rec.Detail, "error", err)
		return "", failure(err)
	}
	if e != nil {
		b.logRefusal(ctx, &rec)
		return "", e
	}
	b.o.Logger.InfoContext(ctx, "attested", "session", s.ID, "tenant", s.Tenant, "tee", s.TEE, "status", rec.EARStatus, "simulated", rec.Simulated, "initdata", rec.InitData)
	return out.Token, nil
}

// judge checks that the evidence answers this handshake's challenge and has
// it evaluated.
func (b *Broker) judge(ctx context.Context, s *session.Session, att *kbs.Attestation) (*evaluation.Outcome, *problem.Error) {
	nonce, ok := s.Challenge(att.Nonce)
	if !ok {
		expected := s.Nonce
		if expected == "" {
			expected = "the challenge of this handshake"
		}
		return nil, problem.Denied(problem.Attestation, "the evidence is not of this handshake", kbs.Reason{
			Rule: "session.nonce", Claim: "runtime-data.nonce", Expected: expected, Got: orNone(clip(att.Nonce)),
			Help: "the attestation answers the challenge of another handshake (replayed?): attest with the nonce of this one",
		})
	}
	req, e := request(s, nonce, att)
	if e != nil {
		return nil, e
	}
	out, e := b.o.Evaluator.Evaluate(ctx, req)
	if e == nil && (out == nil || out.Token == "") {
		return out, problem.Internal(problem.Attestation, errors.New("the evaluation came to no token and no error"))
	}
	return out, e
}

// request is what a handshake presents for evaluation.
func request(s *session.Session, nonce string, att *kbs.Attestation) (evaluation.Request, *problem.Error) {
	malformed := func(err error) (evaluation.Request, *problem.Error) {
		return evaluation.Request{}, problem.New(http.StatusBadRequest, problem.Serde, "%v", err)
	}
	doc, e := initData(att)
	if e != nil {
		return evaluation.Request{}, e
	}
	// The devices' runtime data: that of the primary evidence says more.
	device := map[string]any{"nonce": nonce, "tee-pubkey": att.TEEKey}
	primary := device
	if att.Additional != nil {
		primary = maps.Clone(device)
		primary["additional-evidence"] = *att.Additional
	}
	req := evaluation.Request{
		Tenant: s.Tenant, Session: s.ID, Protocol: string(s.Protocol), Policy: s.Policy, Runtime: primary,
		Primary: evaluation.Individual{TEE: s.TEE, Evidence: att.Evidence, InitData: doc},
	}
	var err error
	if req.Primary.ReportData, err = att.Digest(s.Hash, nonce); err != nil {
		return malformed(err)
	}
	devices, err := att.Devices()
	if err != nil {
		return malformed(err)
	}
	if len(devices) == 0 {
		return req, nil
	}
	digest, err := att.DeviceDigest(s.Hash, nonce)
	if err != nil {
		return malformed(err)
	}
	// The log is no device: it is bound as all of the additional evidence is.
	if log, ok := devices[tee.RuntimeLog]; ok {
		req.RuntimeLog = log
		delete(devices, tee.RuntimeLog)
	}
	for _, name := range slices.Sorted(maps.Keys(devices)) {
		req.Devices = append(req.Devices, evaluation.Individual{TEE: name, Evidence: devices[name], ReportData: digest, Runtime: device})
	}
	return req, nil
}

// initData parses initdata that the guest presented, nil when it presented none.
func initData(att *kbs.Attestation) (*evaluation.InitData, *problem.Error) {
	if att.InitData == nil {
		return nil, nil
	}
	if att.InitData.Format != "toml" {
		return nil, problem.New(http.StatusBadRequest, problem.Serde, "init-data: format: expected \"toml\", got %q", clip(att.InitData.Format))
	}
	raw := []byte(att.InitData.Body)
	doc, err := initdata.Parse(raw)
	if err != nil {
		return nil, problem.New(http.StatusBadRequest, problem.Serde, "init-data: %v", err)
	}
	_, digest, err := initdata.Digest(raw)
	if err != nil {
		return nil, problem.New(http.StatusBadRequest, problem.Serde, "init-data: %v", err)
	}
	return &evaluation.InitData{Digest: digest, Document: doc}, nil
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
