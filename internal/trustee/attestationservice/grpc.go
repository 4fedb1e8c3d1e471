package attestationservice

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net/http"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/coffer-project/coffer/internal/trustee/api/attestation"
	"github.com/coffer-project/coffer/internal/trustee/api/reference"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs"
)

// tenantKey is the metadata that names a tenant.
const tenantKey = "coffer-tenant"

func (s *Service) newGRPC() *grpc.Server {
	g := grpc.NewServer(grpc.MaxRecvMsgSize(s.o.MaxBody), grpc.UnaryInterceptor(s.bounded), grpc.StreamInterceptor(s.boundedStream))
	attestation.RegisterAttestationServiceServer(g, attestationServer{s: s})
	reference.RegisterReferenceValueProviderServiceServer(g, referenceServer{s: s})
	healthpb.RegisterHealthServer(g, s.health)
	for name := range g.GetServiceInfo() {
		s.health.SetServingStatus(name, healthpb.HealthCheckResponse_SERVING)
	}
	return g
}

// timed is a call's context with its end.
func (s *Service) timed(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.o.Timeout <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, s.o.Timeout)
}

func (s *Service) bounded(ctx context.Context, in any, _ *grpc.UnaryServerInfo, call grpc.UnaryHandler) (any, error) {
	ctx, cancel := s.timed(ctx)
	defer cancel()
	return call(ctx, in)
}

func (s *Service) boundedStream(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, call grpc.StreamHandler) error {
	ctx, cancel := s.timed(stream.Context())
	defer cancel()
	return call(server, timedStream{stream, ctx})
}

// timedStream is a stream with another context.
type timedStream struct {
	grpc.ServerStream

	ctx context.Context
}

func (t timedStream) Context() context.Context { return t.ctx }

// tenantOf is the context's tenant, or the one that the metadata names.
func (s *Service) tenantOf(ctx context.Context) (tenant.Name, *problem.Error) {
	md, _ := metadata.FromIncomingContext(ctx)
	names := md.Get(tenantKey)
	t := tenant.Of(ctx)
	switch {
	case len(names) == 0:
		return t, nil
	case len(names) > 1:
		return "", invalid(tenantKey, "expected one, got %d", len(names))
	}
	n, err := tenant.Parse(names[0])
	if err != nil {
		return "", invalid(tenantKey, "%v", err)
	}
	if t != tenant.Default && t != n {
		return "", invalid(tenantKey, "expected the tenant of the URL, got another")
	}
	if e := s.o.Enter(ctx, n); e != nil {
		return "", e
	}
	return n, nil
}

// grpcAdmin checks the call's token.
func (s *Service) grpcAdmin(ctx context.Context, permission string) (tenant.Name, Admin, *problem.Error) {
	t, e := s.tenantOf(ctx)
	if e != nil {
		return "", Admin{}, e
	}
	md, _ := metadata.FromIncomingContext(ctx)
	var token string
	if h := md.Get("authorization"); len(h) == 1 {
		token = bearer(h[0])
	}
	admin, e := s.authorize(ctx, token, t, permission)
	return t, admin, e
}

// code is the gRPC status of an HTTP status.
func code(httpStatus int) codes.Code {
	switch httpStatus {
	case http.StatusBadRequest:
		return codes.InvalidArgument
	case http.StatusUnauthorized:
		return codes.Unauthenticated
	case http.StatusForbidden:
		return codes.PermissionDenied
	case http.StatusNotFound:
		return codes.NotFound
	case http.StatusConflict:
		return codes.FailedPrecondition
	case http.StatusRequestEntityTooLarge, http.StatusTooManyRequests, http.StatusInsufficientStorage:
		return codes.ResourceExhausted
	case http.StatusNotImplemented:
		return codes.Unimplemented
	case http.StatusServiceUnavailable:
		return codes.Unavailable
	}
	return codes.Internal
}

// fail makes a status whose message is the detail. The reason of a denial is a
// google.protobuf.Struct in the details.
func (s *Service) fail(ctx context.Context, e *problem.Error) error {
	level := slog.LevelDebug
	if e.Status >= http.StatusInternalServerError {
		level = slog.LevelError
	}
	s.o.Logger.LogAttrs(ctx, level, "call failed", slog.Int("status", e.Status), slog.Any("error", e))
	st := status.New(code(e.Status), e.Info.Detail)
	if e.Info.Reason == nil {
		return st.Err()
	}
	detail, err := structpb.NewStruct(reasonMap(e.Info))
	if err != nil {
		return st.Err()
	}
	if with, err := st.WithDetails(detail); err == nil {
		st = with
	}
	return st.Err()
}

func reasonMap(i kbs.ErrorInfo) map[string]any {
	r := i.Reason
	return map[string]any{"type": i.Type, "reason": map[string]any{
		"rule": r.Rule, "claim": r.Claim, "expected": r.Expected, "got": r.Got, "help": r.Help,
	}}
}

type attestationServer struct {
	attestation.UnimplementedAttestationServiceServer

	s *Service
}

func (a attestationServer) AttestationEvaluate(ctx context.Context, in *attestation.AttestationRequest) (*attestation.AttestationResponse, error) {
	t, e := a.s.tenantOf(ctx)
	if e != nil {
		return nil, a.s.fail(ctx, e)
	}
	q := request{PolicyIDs: in.GetPolicyIds()}
	for _, r := range in.GetVerificationRequests() {
		x := individual{TEE: r.GetTee(), Evidence: r.GetEvidence(), HashAlgorithm: r.GetRuntimeDataHashAlgorithm()}
		switch v := r.GetRuntimeData().(type) {
		case *attestation.IndividualAttestationRequest_RawRuntimeData:
			x.RawRuntime = &v.RawRuntimeData
		case *attestation.IndividualAttestationRequest_StructuredRuntimeData:
			x.Structured = &v.StructuredRuntimeData
		}
		switch v := r.GetInitData().(type) {
		case *attestation.IndividualAttestationRequest_InitDataDigest:
			x.InitDigest = &v.InitDataDigest
		case *attestation.IndividualAttestationRequest_InitDataToml:
			x.InitTOML = &v.InitDataToml
		}
		q.Individuals = append(q.Individuals, x)
	}
	token, e := a.s.evaluate(ctx, t, q)
	if e != nil {
		return nil, a.s.fail(ctx, e)
	}
	return &attestation.AttestationResponse{AttestationToken: token}, nil
}

func (a attestationServer) SetAttestationPolicy(ctx context.Context, in *attestation.SetPolicyRequest) (*attestation.SetPolicyResponse, error) {
	t, who, e := a.s.grpcAdmin(ctx, PolicyWrite)
	if e == nil {
		e = a.s.storePolicy(ctx, t, who, in.GetPolicyId(), in.GetPolicy())
	}
	if e != nil {
		return nil, a.s.fail(ctx, e)
	}
	return &attestation.SetPolicyResponse{}, nil
}

func (a attestationServer) GetAttestationChallenge(ctx context.Context, in *attestation.ChallengeRequest) (*attestation.ChallengeResponse, error) {
	nonce, e := a.s.nonce(ctx, in.GetInner()["tee"])
	if e != nil {
		return nil, a.s.fail(ctx, e)
	}
	return &attestation.ChallengeResponse{AttestationChallenge: nonce}, nil
}

// storePolicy is what both interfaces do to store a policy.
func (s *Service) storePolicy(ctx context.Context, t tenant.Name, who Admin, id, encoded string) *problem.Error {
	if e := checkID("policy_id", id); e != nil {
		return e
	}
	body, e := decodePolicy(encoded)
	if e != nil {
		return e
	}
	e = asProblem(s.o.Policies.SetPolicy(ctx, t, id, body, who.Subject), problem.Storage)
	return s.changed(ctx, t, who, "policy.set", "coffer:///policies/attestation/"+id, fmt.Sprintf("%d bytes, SHA-256 %x", len(body), sha256.Sum256([]byte(body))), e)
}

type referenceServer struct {
	reference.UnimplementedReferenceValueProviderServiceServer

	s *Service
}

// healthProbe is the name that the ecosystem's clients ask for to see whether
// the service is there.
const healthProbe = "__healthcheck__"

func (v referenceServer) QueryReferenceValue(ctx context.Context, in *reference.ReferenceValueQueryRequest) (*reference.ReferenceValueQueryResponse, error) {
	if in.GetReferenceValueId() == healthProbe {
		return &reference.ReferenceValueQueryResponse{}, nil
	}
	t, _, e := v.s.grpcAdmin(ctx, ReferenceRead)
	if e != nil {
		return nil, v.s.fail(ctx, e)
	}
	doc, found, e := v.s.referenceJSON(ctx, t, in.GetReferenceValueId())
	if e != nil {
		return nil, v.s.fail(ctx, e)
	}
	out := &reference.ReferenceValueQueryResponse{}
	if found {
		text := string(doc)
		out.ReferenceValueResults = &text
	}
	return out, nil
}

func (v referenceServer) RegisterReferenceValue(ctx context.Context, in *reference.ReferenceValueRegisterRequest) (*reference.ReferenceValueRegisterResponse, error) {
	t, who, e := v.s.grpcAdmin(ctx, ReferenceWrite)
	if e == nil {
		e = asProblem(v.s.o.References.Register(ctx, t, []byte(in.GetMessage()), who.Subject), problem.Storage)
		e = v.s.changed(ctx, t, who, "reference.register", "coffer:///reference-values/",
			fmt.Sprintf("a message of %d bytes, SHA-256 %x", len(in.GetMessage()), sha256.Sum256([]byte(in.GetMessage()))), e)
	}
	if e != nil {
		return nil, v.s.fail(ctx, e)
	}
	return &reference.ReferenceValueRegisterResponse{}, nil
}

// Listing asks for pages and stops at a number of names.
const (
	listPage = 1000
	listMax  = 100_000
)

func (v referenceServer) ListReferenceValues(ctx context.Context, _ *reference.ReferenceValueListRequest) (*reference.ReferenceValueListResponse, error) {
	t, _, e := v.s.grpcAdmin(ctx, ReferenceRead)
	if e != nil {
		return nil, v.s.fail(ctx, e)
	}
	out := &reference.ReferenceValueListResponse{}
	for after := ""; len(out.ReferenceValueIds) < listMax; {
		names, err := v.s.o.References.ReferenceNames(ctx, t, after, listPage)
		if err != nil {
			return nil, v.s.fail(ctx, asProblem(err, problem.Storage))
		}
		out.ReferenceValueIds = append(out.ReferenceValueIds, names...)
		if len(names) < listPage {
			return out, nil
		}
		after = names[len(names)-1]
	}
	return nil, v.s.fail(ctx, problem.New(http.StatusInsufficientStorage, problem.ReferenceValue, "there are more than %d reference values: list them by the administration interface, in pages", listMax))
}
