package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/trustee/appraisal"
	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/evaluation"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/seal"
	"github.com/coffer-project/coffer/internal/trustee/store"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/internal/trustee/token"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/snp/snpverify"
)

// gcPercent is the collector's setting in the trustee's program.
const gcPercent = 300

// batch is how many evaluations are timed together.
const batch = 200

// appraisal measures, in this process, what an evaluation costs beyond the
// verification of the same evidence: the appraisal by the built-in policy over
// a store, the EAR, and the signature of the token.
func (b *bench) appraisal(ctx context.Context) (err error) {
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	verifier, err := snpverify.New(snpverify.Options{DevelopmentRoots: []snpverify.DevelopmentRoot{{Name: "development.pem", PEM: b.fleet.root}}})
	if err != nil {
		return err
	}
	s, err := openStore(ctx, filepath.Join(b.work, "appraisal.db"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	measurement := b.fleet.guest.Measurement()
	value, err := json.Marshal(hex.EncodeToString(measurement[:]))
	if err != nil {
		return err
	}
	if err := s.SetReferences(ctx, tenant.Default, refvalues.Reference{Name: "snp_launch_measurement", Entries: []refvalues.Entry{{Value: value}}}); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tokens, err := token.New(ctx, token.Options{Keys: token.Static(key), Issuer: "bench", Audience: "bench", Lifetime: time.Minute, Now: time.Now})
	if err != nil {
		return err
	}
	engine := evaluation.New(evaluation.Options{
		Verifiers: map[tee.Name]tee.Verifier{tee.SNP: verifier},
		Appraiser: appraisal.New(appraisal.Options{Policies: policies{s}, References: references{s}, Now: time.Now, Verbose: true}),
		Tokens:    tokens, MaxConcurrent: 8, Build: "bench",
	})
	request, err := b.request(ctx)
	if err != nil {
		return err
	}
	var claims ear.Claims
	evaluate := func() error {
		out, e := engine.Evaluate(ctx, request)
		if e != nil {
			return e
		}
		claims = out.Claims
		return nil
	}
	want := tee.Expected{ReportData: request.Primary.ReportData, InitData: request.Primary.InitData.Digest}
	verify := func() error { _, err := verifier.Verify(ctx, request.Primary.Evidence, want); return err }
	mint := func() error { _, _, err := tokens.MintPayload(ctx, tenant.Default, claims); return err }
	var whole, checks, over, wall, signing []float64
	for i := range 4*b.pairs + 1 {
		e, err1 := timed(evaluate)
		v, err2 := timed(verify)
		m, err3 := timed(mint)
		if err := errors.Join(err1, err2, err3); err != nil {
			return err
		}
		if i == 0 {
			continue // for warmth
		}
		whole, checks = append(whole, ms(e.cpu)), append(checks, ms(v.cpu))
		over, wall = append(over, ms(e.cpu-v.cpu)), append(wall, ms(e.wall-v.wall))
		signing = append(signing, ms(m.cpu))
	}
	b.report.AtMost("appraisal/over-checks", median(over), "ms", maxAppraisal, "evaluation less verification of the same evidence, CPU time, token signing included")
	b.report.Add("appraisal/over-checks-wall", median(wall), "ms", "the same by wall time")
	b.report.Add("appraisal/token", median(signing), "ms", "of that: the token, ES256")
	b.report.Add("appraisal/evaluation", median(whole), "ms", "all of an evaluation")
	b.report.Add("appraisal/verification", median(checks), "ms", "verification alone, certificates known")
	return nil
}

type cost struct{ cpu, wall time.Duration }

// timed is the cost of one call, of a batch of them.
func timed(f func() error) (cost, error) {
	cpu, begun := ownCPU(), time.Now()
	for range batch {
		if err := f(); err != nil {
			return cost{}, err
		}
	}
	return cost{(ownCPU() - cpu) / batch, time.Since(begun) / batch}, nil
}

// request is what a guest of the fleet presents.
func (b *bench) request(ctx context.Context) (evaluation.Request, error) {
	key, err := kbs.GenerateTEEKey(rand.Reader)
	if err != nil {
		return evaluation.Request{}, err
	}
	const nonce = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	digest, err := kbs.RuntimeDigest("", nonce, key.Public(), new(string))
	if err != nil {
		return evaluation.Request{}, err
	}
	evidence, err := b.fleet.attester(ctx).Evidence(ctx, digest)
	if err != nil {
		return evaluation.Request{}, err
	}
	doc, err := initdata.Parse([]byte(document))
	return evaluation.Request{
		Tenant: tenant.Default, Session: "00112233445566778899aabbccddeeff", Protocol: string(kbs.ProtocolVersion),
		Runtime: map[string]any{"nonce": nonce, "tee-pubkey": key.Public(), "additional-evidence": ""},
		Primary: evaluation.Individual{TEE: tee.SNP, Evidence: evidence, ReportData: digest, InitData: &evaluation.InitData{Digest: b.fleet.digest, Document: doc}},
	}, err
}

func openStore(ctx context.Context, path string) (*store.Store, error) {
	kek, err := seal.File(secret.New(make([]byte, 32)))
	if err != nil {
		return nil, err
	}
	return store.Open(ctx, store.Options{Path: path, KEK: kek, Now: time.Now, Rand: rand.Reader, Logger: slog.New(slog.DiscardHandler)})
}

// policies and references are the store as the appraisal sees it.
type policies struct{ *store.Store }

func (p policies) PolicyVersions(ctx context.Context, t tenant.Name) (map[string]int64, error) {
	return p.PolicyHeads(ctx, t, store.AttestationPolicy)
}

func (p policies) PolicyText(ctx context.Context, t tenant.Name, id string, version int64) (string, error) {
	x, err := p.Policy(ctx, t, store.AttestationPolicy, id, version)
	return x.Text, err
}

type references struct{ *store.Store }

func (r references) Reference(ctx context.Context, t tenant.Name, name string) (refvalues.Reference, bool, error) {
	ref, err := r.Store.Reference(ctx, t, name)
	if errors.Is(err, store.ErrNotFound) {
		return refvalues.Reference{}, false, nil
	}
	return ref, err == nil, err
}
