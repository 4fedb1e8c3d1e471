package task

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// Bounds of what a guest can have printed in an error, in bytes.
const (
	maxField   = 512
	maxMessage = 8 << 10
	// maxAnswer bounds a guest's answer; what to do is at its end, which is kept.
	// With what is said of it on the host it is about a KiB.
	maxAnswer = 900
)

// statusError is an error that came over ttrpc.
type statusError interface {
	error
	GRPCStatus() *status.Status
}

// explained is an error that a person reads, of a class of errdefs.
type explained struct {
	class error
	text  string
}

func (e *explained) Error() string { return e.text }
func (e *explained) Unwrap() error { return e.class }

// explain turns an error into what the user reads: a status of the guest
// becomes its text, a refusal names rule, field, expected, got and what to do,
// and its code becomes a class of errdefs. Everything is bounded and printable.
func explain(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*explained](err); ok {
		return err
	}
	text, class := err.Error(), error(errdefs.Resolve(err))
	if st, ok := errors.AsType[statusError](err); ok {
		class = classOf(st.GRPCStatus().Code())
		text = strings.Replace(text, st.Error(), told(st.GRPCStatus()), 1)
	}
	return &explained{class, printable(text, maxMessage)}
}

// told is what a guest's answer says, in one line.
func told(st *status.Status) string {
	for _, d := range st.Details() {
		if r, ok := d.(*agentapi.Refusal); ok {
			return refusal(r)
		}
	}
	return "the guest: " + middle(line(st.Message(), maxMessage))
}

func refusal(r *agentapi.Refusal) string {
	var b strings.Builder
	b.WriteString("the guest refused it (rule " + line(r.GetRule(), maxField) + ")")
	if r.GetPath() != "" {
		b.WriteString(": " + line(r.GetPath(), maxField))
	}
	if r.GetExpected() != "" {
		b.WriteString(": expected " + line(r.GetExpected(), maxField))
	}
	if r.GetGot() != "" {
		b.WriteString(", got " + line(r.GetGot(), maxField))
	}
	if r.GetHelp() != "" {
		b.WriteString("; " + line(r.GetHelp(), maxField))
	}
	return middle(b.String())
}

// middle takes out of the middle what is too long for an answer.
func middle(s string) string {
	const end = maxAnswer / 3
	if len(s) <= maxAnswer {
		return s
	}
	return strings.ToValidUTF8(s[:maxAnswer-end], "") + " … " + strings.ToValidUTF8(s[len(s)-end:], "")
}

// classOf maps the code of a guest's answer.
func classOf(code codes.Code) error {
	switch code {
	case codes.InvalidArgument:
		return errdefs.ErrInvalidArgument
	case codes.NotFound:
		return errdefs.ErrNotFound
	case codes.AlreadyExists:
		return errdefs.ErrAlreadyExists
	case codes.PermissionDenied:
		return errdefs.ErrPermissionDenied
	case codes.ResourceExhausted:
		return errdefs.ErrResourceExhausted
	case codes.FailedPrecondition:
		return errdefs.ErrFailedPrecondition
	case codes.Unavailable:
		return errdefs.ErrUnavailable
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	case codes.Canceled:
		return context.Canceled
	default:
		// NotImplemented among them: containerd would ask again by an older API.
		return errdefs.ErrUnknown
	}
}

// line makes a guest's text one line.
func line(s string, limit int) string {
	return printable(strings.Join(strings.Fields(s), " "), limit)
}

// printable bounds a text and makes it safe for a terminal.
func printable(s string, limit int) string {
	clean := strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, strings.ToValidUTF8(s[:min(len(s), limit)], "\uFFFD"))
	if len(s) > limit || len(clean) > limit {
		return strings.ToValidUTF8(clean[:min(len(clean), limit)], "") + "…"
	}
	return clean
}

// quote makes a caller's text readable in one bounded line.
func quote(s string) string {
	if len(s) > maxField {
		s = s[:maxField] + "…"
	}
	return strconv.QuoteToGraphic(s)
}
