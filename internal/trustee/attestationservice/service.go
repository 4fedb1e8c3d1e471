// Package attestationservice serves evaluations to other key brokers: the
// REST and gRPC interfaces of the ecosystem's attestation service, with gRPC
// reference values and health, on one listener.
//
// It differs from the reference implementation where that one is unsafe or
// mute: runtime data is required, errors have their own statuses with reasons,
// administration and reading of what a tenant keeps need an administrator's
// token, and every evaluation is recorded before its token is handed out. As
// there, raw runtime data is the expected report data itself, and nonces are
// the caller's to remember: the service keeps no sessions.
//
// The tenant comes from the request's context (a prefix of the URL that was
// stripped); gRPC clients, whose paths are fixed, name another one in the
// metadata "coffer-tenant".
package attestationservice

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/evaluation"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/refvalues"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/tee"
)

// Permissions that administrative calls need.
const (
	PolicyWrite    = "policy.write"
	PolicyRead     = "policy.read"
	ReferenceWrite = "reference.write"
	ReferenceRead  = "reference.read"
)

// Evaluator turns evidence into a token.
type Evaluator interface {
	Evaluate(ctx context.Context, r evaluation.Request) (*evaluation.Outcome, *problem.Error)
}

// Policies keeps attestation policies by id, for example "default_cpu".
type Policies interface {
	// SetPolicy checks and stores a text. A text that cannot be used is a
	// *policy.CompileError.
	SetPolicy(ctx context.Context, t tenant.Name, id, text, author string) error
	// Policy is the newest text; false where there is none.
	Policy(ctx context.Context, t tenant.Name, id string) (string, bool, error)
	PolicyIDs(ctx context.Context, t tenant.Name) ([]string, error)
}

// References keeps reference values.
type References interface {
	Reference(ctx context.Context, t tenant.Name, name string) (refvalues.Reference, bool, error)
	// Register verifies an RVPS message and stores what it proves. What is
	// wrong with the message is a *problem.Error, or any error for a failure
	// of the trustee.
	Register(ctx context.Context, t tenant.Name, message []byte, author string) error
	// ReferenceNames lists names in order that come after one, at most limit.
	ReferenceNames(ctx context.Context, t tenant.Name, after string, limit int) ([]string, error)
}

// Recorder appends to the compliance record.
type Recorder interface {
	Append(ctx context.Context, t tenant.Name, r audit.Record) (audit.Entry, error)
}

// Admin is who a bearer token belongs to.
type Admin struct{ Subject, Role string }

// Options of [New]. All are required but for those with a stated default.
type Options struct {
	Evaluator  Evaluator
	Policies   Policies
	References References
	Recorder   Recorder
	// JWKS is the set of the keys that sign tokens.
	JWKS func(ctx context.Context) (jose.JSONWebKeySet, error)
	// Authorize checks an administrator's bearer token ("" where there is
	// none) for a permission. A *problem.Error is answered as it is.
	Authorize func(ctx context.Context, bearer string, t tenant.Name, permission string) (Admin, error)
	// Enter refuses a tenant that does not exist or is not served. It is asked
	// about tenants that gRPC's metadata names: those of URLs have been.
	Enter func(ctx context.Context, t tenant.Name) *problem.Error
	// Audience is put into tokens. It has to differ from the trustee's own:
	// whoever calls the service says itself which nonce was good, so that its
	// tokens are worth nothing at the trustee's own resources.
	Audience string
	// OpenReads lets anyone read policies and reference values, as clients of
	// the reference implementation expect that send no token.
	OpenReads bool
	// AllowSimulated is written into every record.
	AllowSimulated bool
	// ClientAddr is the network address of a request's client; nil: unknown.
	ClientAddr func(*http.Request) string
	// MaxBody bounds a request, in bytes.
	MaxBody int
	// Challengers make the challenges of TEEs for which a random nonce is not
	// enough; may be nil.
	Challengers map[tee.Name]func(ctx context.Context) (string, error)
	// Timeout bounds a gRPC call; zero: nothing does. REST requests end with
	// their context.
	Timeout time.Duration
	Logger  *slog.Logger
	Now     func() time.Time
	// Rand is the source of nonces and token ids; safe for concurrent use.
	Rand io.Reader
}

// Service is the handler. Serve it with HTTP/2, over TLS or unencrypted
// (http.Protocols), for gRPC, and with HTTP/1.1 for the rest. It is safe for
// concurrent use.
type Service struct {
	o      Options
	grpc   *grpc.Server
	health *health.Server
	rest   *http.ServeMux
}

// New returns the service.
func New(o Options) (*Service, error) {
	if o.Audience == "" {
		return nil, errors.New("attestation service: expected an audience for its tokens")
	}
	if o.Enter == nil {
		return nil, errors.New("attestation service: expected a check of tenants")
	}
	s := &Service{o: o, health: health.NewServer()}
	s.grpc = s.newGRPC()
	s.rest = s.routes()
	return s, nil
}

// ServeHTTP implements http.Handler.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.o.ClientAddr != nil {
		r = r.WithContext(context.WithValue(r.Context(), clientKey{}, s.o.ClientAddr(r)))
	}
	if IsGRPC(r) {
		s.grpc.ServeHTTP(w, r)
		return
	}
	s.rest.ServeHTTP(w, r)
}

// IsGRPC reports whether a request is a gRPC call. Its context must not be one
// that ends before the connection does: the call would end without a status.
// [Options].Timeout bounds it instead.
func IsGRPC(r *http.Request) bool {
	return r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
}

// Shutdown tells health checks that the service is going away.
func (s *Service) Shutdown() { s.health.Shutdown() }

type clientKey struct{}

func clientOf(ctx context.Context) string {
	c, _ := ctx.Value(clientKey{}).(string)
	return c
}

// evaluate has a request judged and recorded.
func (s *Service) evaluate(ctx context.Context, t tenant.Name, q request) (string, *problem.Error) {
	r, e := q.parse()
	if e != nil {
		return "", e
	}
	id := make([]byte, 16)
	if _, err := io.ReadFull(s.o.Rand, id); err != nil {
		return "", problem.Internal(problem.Attestation, err)
	}
	r.Tenant, r.Session, r.Audience = t, hex.EncodeToString(id), s.o.Audience
	out, e := s.o.Evaluator.Evaluate(ctx, r)
	if err := s.record(ctx, t, r, out, e); err != nil {
		// A verdict without its record is none.
		return "", problem.Internal(problem.Storage, err)
	}
	if e != nil {
		return "", e
	}
	return out.Token, nil
}

// maxClaims bounds a record's claims; larger ones are left out.
const maxClaims = 64 << 10

func (s *Service) record(ctx context.Context, t tenant.Name, r evaluation.Request, out *evaluation.Outcome, e *problem.Error) error {
	rec := audit.Record{
		At: s.o.Now(), Tenant: t, Kind: audit.KindAttestation, Client: clientOf(ctx), TEE: string(r.Primary.TEE), Session: r.Session,
		Action: "evaluate", Granted: e == nil, Status: http.StatusOK, AllowSimulated: s.o.AllowSimulated,
	}
	if out != nil {
		rec.InitData, rec.Simulated, rec.Policy = hex.EncodeToString(out.InitData), out.Simulated, out.PolicyLabel
	}
	switch {
	case e != nil:
		rec.Status, rec.Detail = e.Status, e.Info.Detail
		if e.Info.Reason != nil {
			rec.Reasons = append(rec.Reasons, *e.Info.Reason)
		}
	default:
		rec.EARStatus = string(out.Claims.Status())
		if len(out.Payload) <= maxClaims {
			rec.Claims = out.Payload
		}
	}
	_, err := s.o.Recorder.Append(context.WithoutCancel(ctx), t, rec)
	return err
}

// authorize checks a token for a permission.
func (s *Service) authorize(ctx context.Context, bearer string, t tenant.Name, permission string) (Admin, *problem.Error) {
	if s.o.OpenReads && strings.HasSuffix(permission, ".read") {
		return Admin{}, nil
	}
	admin, err := s.o.Authorize(ctx, bearer, t, permission)
	return admin, asProblem(err, problem.AdminAccess)
}

// changed records what an administrator did to which thing, by the names that
// records of the administration interface have.
func (s *Service) changed(ctx context.Context, t tenant.Name, admin Admin, action, thing, detail string, e *problem.Error) *problem.Error {
	rec := audit.Record{
		At: s.o.Now(), Tenant: t, Kind: audit.KindAdmin, Client: clientOf(ctx), Subject: admin.Subject, Role: admin.Role, Action: action, Resource: thing,
		Granted: e == nil, Status: http.StatusOK, Detail: detail,
	}
	if e != nil {
		rec.Status, rec.Detail = e.Status, clip(detail+": "+e.Info.Detail)
	}
	if _, err := s.o.Recorder.Append(context.WithoutCancel(ctx), t, rec); err != nil {
		p := problem.Internal(problem.Storage, err)
		p.Info.Detail = "the change could not be recorded: look whether it was made; the trustee's log has the cause"
		return p
	}
	return e
}

// maxDetail bounds what a record says in words, in bytes: a compiler's message
// can repeat the text.
const maxDetail = 1 << 10

func clip(s string) string {
	if len(s) <= maxDetail {
		return s
	}
	return strings.ToValidUTF8(s[:maxDetail-len("…")], "") + "…"
}

// referenceJSON is what a policy would see of a reference value now.
func (s *Service) referenceJSON(ctx context.Context, t tenant.Name, name string) (json.RawMessage, bool, *problem.Error) {
	if err := refvalues.CheckName(name); err != nil {
		return nil, false, problem.New(http.StatusBadRequest, problem.ReferenceValue, "reference_value_id: %v", err)
	}
	ref, found, err := s.o.References.Reference(ctx, t, name)
	if err != nil || !found {
		return nil, false, asProblem(err, problem.Storage)
	}
	doc := ref.Current(s.o.Now())
	return doc, string(doc) != "null", nil
}
