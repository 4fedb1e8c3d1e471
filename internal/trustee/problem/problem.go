// Package problem is the trustee's error answer: a status, the KBS error body
// that the client gets, and a cause that only the log gets.
package problem

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/coffer-project/coffer/kbs"
)

// Variants of the KBS protocol's error types, as its reference implementation
// names them, and ResourceNotFound, which it lacks.
const (
	Attestation      = "AttestationError"
	TokenNotFound    = "TokenNotFound"
	TokenVerifier    = "TokenVerifierError"
	PolicyDeny       = "PolicyDeny"
	ParsePolicy      = "ParsePolicyError"
	PolicyEngine     = "PolicyEngineError"
	InvalidPath      = "InvalidRequestPath"
	PluginNotFound   = "PluginNotFound"
	Serde            = "SerdeError"
	AdminAccess      = "AdminAuthAccess"
	ReferenceValue   = "RvpsError"
	Storage          = "StorageBackendError"
	ResourceNotFound = "ResourceNotFound"
	Limit            = "LimitExceeded"
	PluginInternal   = "PluginInternalError"
)

// Error is an answer other than success.
type Error struct {
	Status int
	Info   kbs.ErrorInfo
	// RetryAfter is sent where it is positive.
	RetryAfter time.Duration
	// Cause goes to the log only.
	Cause error
}

// Error implements error; it includes the cause.
func (e *Error) Error() string {
	if e.Cause != nil {
		return fmt.Sprintf("%d %s: %v", e.Status, e.Info.Detail, e.Cause)
	}
	return fmt.Sprintf("%d %s", e.Status, e.Info.Detail)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// New is an error with a detail for people.
func New(status int, variant, format string, args ...any) *Error {
	return &Error{Status: status, Info: kbs.ErrorInfo{Type: kbs.ErrorType(variant), Detail: fmt.Sprintf(format, args...)}}
}

// Denied is a 403 with its reasons, the weightiest first: that one stands by
// itself in the body, all stand in a list and in the detail. Without reasons it
// still denies.
func Denied(variant, what string, reasons ...kbs.Reason) *Error {
	if len(reasons) == 0 {
		return New(http.StatusForbidden, variant, "%s", what)
	}
	reasons = reasons[:min(len(reasons), maxReasons)]
	var e *Error
	// A list of reference values with their descriptions fits into the first
	// limit. Where there are many such texts, all are cut until the client
	// can take the body.
	for _, limit := range []int{16 << 10, 4 << 10, 1 << 10, 256} {
		e = denied(variant, what, reasons, limit)
		if doc, err := json.Marshal(e.Info); err == nil && len(doc) <= maxBody {
			break
		}
	}
	return e
}

// Unavailable is a 503 with what is missing, in the form of [Denied], and a
// request to come again after some time.
func Unavailable(variant, what string, after time.Duration, reasons ...kbs.Reason) *Error {
	e := Denied(variant, what, reasons...)
	e.Status, e.RetryAfter = http.StatusServiceUnavailable, after
	return e
}

const (
	// maxReasons bounds what a denial lists.
	maxReasons = 16
	// maxBody leaves room below what clients read of an error.
	maxBody = kbs.MaxErrorBytes - 4<<10
)

func denied(variant, what string, reasons []kbs.Reason, limit int) *Error {
	all := make([]kbs.Reason, len(reasons))
	lines := make([]string, len(reasons))
	for i, r := range reasons {
		all[i] = plain(r, limit)
		lines[i] = all[i].String()
	}
	e := New(http.StatusForbidden, variant, "%s: %s", clip(what, limit), strings.Join(lines, "; "))
	first := all[0]
	e.Info.Reason, e.Info.Reasons = &first, all
	return e
}

// plain is a reason that a terminal and a log can take, with texts of at most
// limit bytes. Reasons quote what the other side sent, and administrators read
// them in the record.
func plain(r kbs.Reason, limit int) kbs.Reason {
	for _, s := range []*string{&r.Rule, &r.Claim, &r.Expected, &r.Got, &r.Help} {
		*s = strings.Map(func(c rune) rune {
			if unicode.IsPrint(c) {
				return c
			}
			return unicode.ReplacementChar
		}, clip(*s, limit))
	}
	return r
}

func clip(s string, limit int) string {
	if len(s) > limit {
		return s[:limit] + "…"
	}
	return s
}

// Internal is a failure of the trustee: 503 with a request to come again when
// time ran out, else 500. The cause is not told.
func Internal(variant string, cause error) *Error {
	e := New(http.StatusInternalServerError, variant, "the trustee failed to process the request; its log has the cause")
	if errors.Is(cause, context.DeadlineExceeded) || errors.Is(cause, context.Canceled) {
		e = Busy(variant, "the request took too long")
	}
	e.Cause = cause
	return e
}

// Busy is a 503 with a request to come again.
func Busy(variant, detail string) *Error {
	e := New(http.StatusServiceUnavailable, variant, "%s; try again", detail)
	e.RetryAfter = 2 * time.Second
	return e
}

// Write sends the error and logs it: failures of the trustee as errors, the
// rest at debug level.
func Write(ctx context.Context, log *slog.Logger, w http.ResponseWriter, e *Error) {
	level := slog.LevelDebug
	if e.Status >= http.StatusInternalServerError {
		level = slog.LevelError
	}
	attrs := []slog.Attr{slog.Int("status", e.Status), slog.String("detail", e.Info.Detail)}
	if e.Cause != nil {
		attrs = append(attrs, slog.String("cause", e.Cause.Error()))
	}
	log.LogAttrs(ctx, level, "request failed", attrs...)
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds()))))
	}
	if e.Status == http.StatusServiceUnavailable {
		// Who tries again on this connection comes back to this replica; a
		// load balancer knows one that can do better.
		w.Header().Set("Connection", "close")
	}
	JSON(w, e.Status, e.Info)
}

// JSON sends a document without HTML escaping and without caching.
func JSON(w http.ResponseWriter, status int, doc any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	// The header is out: a failure to write can only be the connection's.
	_ = enc.Encode(doc)
}

// Body reads a request body of at most limit bytes.
func Body(w http.ResponseWriter, r *http.Request, limit int) ([]byte, *Error) {
	if r.ContentLength > int64(limit) {
		return nil, tooLarge(limit)
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(limit)))
	if err == nil {
		return data, nil
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, tooLarge(limit)
	}
	e := New(http.StatusBadRequest, Serde, "the request body could not be read")
	e.Cause = err
	return nil, e
}

func tooLarge(limit int) *Error {
	return New(http.StatusRequestEntityTooLarge, Limit, "request body: expected at most %d bytes", limit)
}
