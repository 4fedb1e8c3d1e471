package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/podpolicy"
)

// Rules of the agent itself, beside those of podpolicy.
const (
	// RuleInitdata: initdata and launch evidence belong together.
	RuleInitdata = "initdata.digest"
	// RuleInitdataContent: initdata must be complete and understood.
	RuleInitdataContent = "initdata.content"
	// RuleTrustee: the trustee must accept the guest.
	RuleTrustee = "trustee.denied"
	// RuleStream: a stream that the policy forbids is taken and drained.
	RuleStream = "stream.forbidden"
)

// coded is an error with its code at the protocol's edge.
type coded struct {
	code codes.Code
	err  error
	// what failed, for a host that may not know more; empty if every host may,
	// because there is nothing in err but its own words and the agent's.
	what string
}

func (e *coded) Error() string { return e.err.Error() }
func (e *coded) Unwrap() error { return e.err }

// open is an error that says nothing the host does not know.
func open(code codes.Code, format string, args ...any) error {
	return &coded{code: code, err: fmt.Errorf(format, args...)}
}

func invalid(format string, args ...any) error { return open(codes.InvalidArgument, format, args...) }

func notFound(format string, args ...any) error { return open(codes.NotFound, format, args...) }

// unready is a call at the wrong time.
func unready(format string, args ...any) error {
	return open(codes.FailedPrecondition, format, args...)
}

// failed is something that could not be done, for reasons that may have parts
// of images, policies or secrets in them.
func failed(what string, err error) error { return &coded{codes.FailedPrecondition, err, what} }

func noSandbox() error {
	return &podpolicy.Refusal{Rule: podpolicy.RuleSandboxRequired, Expected: "a sandbox", Got: "nothing", Help: "call CreateSandbox first"}
}

// fail turns an error into what goes over the wire, and tells the log and the
// event stream of refusals. It is the only way out for errors. The log is
// written to the console, which the host reads: of a hardware TEE it has no
// more than the answer, unless the measured command line asks for debug
// messages.
func (a *Agent) fail(ctx context.Context, call string, err error) error {
	if err == nil {
		return nil
	}
	if r := refusalOf(err); r != nil {
		public := a.public(ctx, r)
		a.log.WarnContext(ctx, "proposal refused", "call", call, "rule", public.GetRule(), "path", public.GetPath(), "expected", public.GetExpected(), "got", public.GetGot())
		a.log.DebugContext(ctx, "refusal in full", "call", call, "error", err)
		a.events.add(&agentapi.Event{Body: &agentapi.Event_Refusal{Refusal: public}})
		st := status.New(codes.PermissionDenied, publicText(public))
		if detailed, derr := st.WithDetails(protoadapt.MessageV1Of(public)); derr == nil {
			st = detailed
		}
		return st.Err()
	}
	told := a.told(ctx, call, err)
	a.log.WarnContext(ctx, "call failed", "call", call, "error", told)
	a.log.DebugContext(ctx, "failure in full", "call", call, "error", err)
	return status.Error(codeOf(ctx, err), told)
}

// told is what the host may know of a failure: all of it where the guest is
// simulated, or the call works with nothing but what the host has given; else
// what failed and, where it is something the host sees itself, the kind.
func (a *Agent) told(ctx context.Context, call string, err error) string {
	switch call {
	case "Hello", "CreateSandbox", "UpdateNetwork", "Shutdown":
		return strings.ToValidUTF8(err.Error(), "\uFFFD")
	}
	k := cause(err)
	if a.simulated(ctx) {
		text := strings.ToValidUTF8(err.Error(), "\uFFFD")
		if k != nil && !k.said {
			text += "; " + k.do
		}
		return text
	}
	what := call
	if c, ok := errors.AsType[*coded](err); ok {
		if c.what == "" {
			return strings.ToValidUTF8(c.Error(), "\uFFFD")
		}
		what += ": " + c.what
	}
	if k != nil {
		return what + ": " + k.String()
	}
	return what + ": failed; a guest of a hardware TEE does not tell its host why (with coffer.debug on the measured command line its log does)"
}

// simulated reports whether the host could read the guest's memory anyway. When
// that is not known, it could not.
func (a *Agent) simulated(ctx context.Context) bool {
	facts, err := a.o.Attestation.Facts(ctx)
	return err == nil && facts.Simulated
}

func codeOf(ctx context.Context, err error) codes.Code {
	if c, ok := errors.AsType[*coded](err); ok {
		return c.code
	}
	switch {
	// Not by err alone: a connection that was not made in its own time says that it is
	// context.DeadlineExceeded, too (package net), and the host would be told that
	// its limit had passed.
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.Is(err, context.Canceled) || ctx.Err() != nil:
		return codes.Canceled
	case errors.Is(err, os.ErrNotExist):
		return codes.NotFound
	}
	return codes.Internal
}

// refusalOf finds the refusal in an error; a trustee's denial is one too.
func refusalOf(err error) *podpolicy.Refusal {
	if r, ok := errors.AsType[*podpolicy.Refusal](err); ok {
		return r
	}
	denied, ok := errors.AsType[*kbs.StatusError](err)
	if !ok || denied.Status >= 500 || denied.Status == 429 {
		return nil
	}
	r := &podpolicy.Refusal{Rule: RuleTrustee, Path: asked(denied.Op), Got: clip(err.Error())}
	if why := denied.Info.Reason; why != nil {
		r.Expected, r.Got, r.Help = clip(why.Expected), clip(why.Got), clip(why.Help)
		if r.Path != "" && why.Claim != "" {
			r.Path += ": "
		}
		r.Path += clip(why.Claim)
		if why.Rule != "" {
			r.Help = strings.TrimSpace("rule " + clip(why.Rule) + " of the trustee; " + r.Help)
		}
	}
	return r
}

// asked names the resource of a request, which is in the initdata that the host
// has, or what else was asked for.
func asked(op string) string {
	if name, ok := strings.CutPrefix(op, "GET /kbs/v0/resource/"); ok {
		return clip("kbs:///" + name)
	}
	return clip(op)
}

// public is what the host may know. Of a simulated guest it is everything; of
// a real one rule and path. What the host knows anyway, because it launched the
// machine with it, is never hidden from it.
func (a *Agent) public(ctx context.Context, r *podpolicy.Refusal) *agentapi.Refusal {
	p := &agentapi.Refusal{Rule: r.Rule, Path: r.Path}
	if r.Rule == RuleInitdata || a.simulated(ctx) {
		p.Expected, p.Got, p.Help = r.Expected, r.Got, r.Help
	}
	// Protobuf strings must be UTF-8, or the message cannot be sent at all.
	for _, s := range []*string{&p.Rule, &p.Path, &p.Expected, &p.Got, &p.Help} {
		*s = strings.ToValidUTF8(*s, "\uFFFD")
	}
	return p
}

func publicText(r *agentapi.Refusal) string {
	full := podpolicy.Refusal{Rule: r.GetRule(), Path: r.GetPath(), Expected: r.GetExpected(), Got: r.GetGot(), Help: r.GetHelp()}
	return strings.Replace(full.Error(), "refused by the pod policy", "refused", 1)
}

// clip bounds text from elsewhere before it is kept or logged.
func clip(s string) string {
	const limit = 1024
	if len(s) > limit {
		return strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}
