// Package evaluation is the way from evidence to a token, the same for a
// guest's handshake and for the attestation service on its own: every piece
// of evidence is verified and what it is bound to compared, the initdata
// compared with what the environment was launched with, the claims appraised,
// and the result signed. It keeps no state and writes no record.
package evaluation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/trustee/appraisal"
	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/tpm"
)

// MaxWait is how long an evaluation waits for its turn where [Options] say
// nothing.
const MaxWait = 10 * time.Second

// MaxIndividuals bounds the pieces of evidence in one request.
const MaxIndividuals = 64

// Appraiser judges genuine evidence.
type Appraiser interface {
	Appraise(ctx context.Context, ev appraisal.Evidence) (appraisal.Results, error)
}

// Tokens signs. The payload is what was signed.
type Tokens interface {
	MintPayload(ctx context.Context, t tenant.Name, c ear.Claims) (compact string, payload json.RawMessage, err error)
}

// Options of [New].
type Options struct {
	Verifiers map[tee.Name]tee.Verifier
	Appraiser Appraiser
	Tokens    Tokens
	// MaxConcurrent is how many pieces of evidence are verified at once.
	MaxConcurrent int
	// MaxWait is how long one waits for its turn; zero means [MaxWait].
	MaxWait time.Duration
	// Build names the program in tokens.
	Build string
}

// Engine evaluates. It is safe for concurrent use.
type Engine struct {
	o     Options
	slots chan struct{}
}

// New returns an engine.
func New(o Options) *Engine {
	if o.MaxWait <= 0 {
		o.MaxWait = MaxWait
	}
	return &Engine{o: o, slots: make(chan struct{}, max(1, o.MaxConcurrent))}
}

// InitData is initdata that belongs to a piece of evidence.
type InitData struct {
	// Digest is over the document's bytes, by the algorithm that it names.
	Digest []byte
	// Document is nil where only the digest is known.
	Document *initdata.Document
}

// Individual is one piece of evidence.
type Individual struct {
	TEE tee.Name
	// Evidence is the TEE's evidence JSON.
	Evidence json.RawMessage
	// ReportData is the digest that the evidence must carry, before it is
	// fitted to the environment's field. It is required.
	ReportData []byte
	// InitData is nil where none was presented.
	InitData *InitData
	// Runtime are the runtime_data_claims of this piece; nil means those of
	// the request.
	Runtime map[string]any
}

// Request is what one guest presents.
type Request struct {
	Tenant tenant.Name
	// Session becomes the token's jti.
	Session string
	// Protocol is the KBS protocol version of the handshake, "" outside one.
	Protocol string
	Primary  Individual
	// Devices are verified in parallel with the primary evidence.
	Devices []Individual
	// RuntimeLog are the run-time events (eventlog.RuntimeEvidence) that the
	// report data of the primary evidence vouches for; nil where none came.
	RuntimeLog json.RawMessage
	// Runtime is the document that the evidence is bound to, for policies and
	// relying parties to read; nil where only its digest is known.
	Runtime map[string]any
	// Policy is the id of the attestation policy, "" for the default.
	Policy string
	// Audience is the token's, "" for the trustee's own. A token for another
	// one is not good for this trustee's resources.
	Audience string
	// AnyClass permits a primary that is no CPU environment. The attestation
	// service evaluates devices alone; a handshake never does.
	AnyClass bool
}

// Outcome is what an evaluation came to.
type Outcome struct {
	// Token is the compact token, Claims and Payload what it says.
	Token   string
	Claims  ear.Claims
	Payload json.RawMessage
	// InitData is the primary environment's initdata field, nil where it has none.
	InitData []byte
	// Simulated is true where any evidence is of a development root.
	Simulated bool
	// PolicyLabel is the policy that judged the primary evidence, with its version.
	PolicyLabel string
}

// Evaluate does it all. Evidence that is not genuine is a 403 with its
// reasons; what could not be judged, and a wait for a turn that took too
// long, is a 503. Beside an error the outcome holds what is known of the
// environment, without a token, and is nil where nothing was found genuine.
func (e *Engine) Evaluate(ctx context.Context, r Request) (*Outcome, *problem.Error) {
	parts, presented, p := e.verify(ctx, r)
	if p != nil {
		return nil, p
	}
	primary := parts[0].Result
	out := &Outcome{InitData: primary.InitData, Simulated: slices.ContainsFunc(parts, func(p appraisal.Part) bool { return p.Result.Simulated })}
	if p := checkInitData(parts, presented); p != nil {
		return out, p
	}
	results, err := e.o.Appraiser.Appraise(ctx, appraisal.Evidence{Tenant: r.Tenant, Parts: parts, PolicyID: r.Policy})
	if err != nil {
		return out, problem.Internal(problem.PolicyEngine, err)
	}
	out.PolicyLabel = results.Labels[results.Names[0]]
	out.Claims = ear.Claims{
		ID: r.Session, Protocol: r.Protocol, Submods: results.Submods,
		VerifierID: ear.VerifierID{Developer: "https://github.com/coffer-project/coffer", Build: e.o.Build},
	}
	if r.Audience != "" {
		out.Claims.Audience = ear.Audience{r.Audience}
	}
	out.Token, out.Payload, err = e.o.Tokens.MintPayload(ctx, r.Tenant, out.Claims)
	if err != nil {
		return out, problem.Internal(problem.Attestation, err)
	}
	return out, nil
}

// individuals lists the evidence, the primary first, devices by TEE.
func (r Request) individuals() []Individual {
	list := append([]Individual{r.Primary}, slices.Clone(r.Devices)...)
	slices.SortStableFunc(list[1:], func(a, b Individual) int {
		switch {
		case a.TEE < b.TEE:
			return -1
		case a.TEE > b.TEE:
			return 1
		}
		return 0
	})
	return list
}

// checkInitData compares what was presented with each part with what the part
// holds. Verifiers have compared already; environments without such a field
// end here.
func checkInitData(parts []appraisal.Part, presented []*InitData) *problem.Error {
	for i, p := range presented {
		field := parts[i].Result.InitData
		if p == nil || initdata.MatchesField(p.Digest, field) || extended(parts[i].Result, p.Digest) {
			continue
		}
		got := hex.EncodeToString(field)
		if got == "" {
			got = "none"
		}
		return problem.Denied(problem.Attestation, "the initdata is not what the environment was launched with", kbs.Reason{
			Rule: "initdata.digest", Claim: "init_data", Expected: hex.EncodeToString(p.Digest), Got: got,
			Help: "present the initdata whose digest is in the launch evidence, byte for byte, or none",
		})
	}
	return nil
}

// extended compares with the register of a TPM, which holds not the digest but
// what became of it when the register was extended.
func extended(r *tee.Result, digest []byte) bool {
	switch r.TEE {
	case tee.TPM, tee.AzureSNPVTPM, tee.AzureTDXVTPM:
		return len(digest) == sha256.Size && r.InitData != nil && tpm.Extended([sha256.Size]byte(digest)) == [sha256.Size]byte(tee.Fit(r.InitData, sha256.Size))
	}
	return false
}

func (e *Engine) tees() []tee.Name { return slices.Sorted(maps.Keys(e.o.Verifiers)) }

func bad(format string, args ...any) *problem.Error {
	return problem.New(http.StatusBadRequest, problem.Attestation, format, args...)
}

func tooMany(n int) *problem.Error {
	return bad("evidence: expected at most %d pieces, got %d", MaxIndividuals, n)
}

func notJudged(cause error) *problem.Error {
	p := problem.Busy(problem.Attestation, "the evidence could not be judged")
	p.Cause = cause
	return p
}

func nonsense(name tee.Name, r any) *problem.Error {
	return problem.Internal(problem.Attestation, fmt.Errorf("verifier of %s returned a result of %+v", name, r))
}
