// Package logging is the trustee's logger. Code that handles secrets keeps them
// in types that redact themselves and does not log them; the handler of this
// package is the net below: it redacts attributes by their key and text by its
// shape, and cuts what is too long, before anything reaches the output.
package logging

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/coffer-project/coffer/secret"
)

// MaxText is the longest text of one attribute or message that is logged, in
// bytes.
const MaxText = 4 << 10

// Formats of [New].
const (
	Text = "text"
	JSON = "json"
)

// New makes a redacting logger to w. The level is debug, info, warn or error,
// the format text or json.
func New(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	switch level {
	case "debug", "info", "warn", "error":
		if err := l.UnmarshalText([]byte(level)); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("log.level: expected debug, info, warn or error, got %q", level)
	}
	o := &slog.HandlerOptions{Level: l}
	switch format {
	case Text:
		return slog.New(NewHandler(slog.NewTextHandler(w, o))), nil
	case JSON:
		return slog.New(NewHandler(slog.NewJSONHandler(w, o))), nil
	}
	return nil, fmt.Errorf("log.format: expected text or json, got %q", format)
}

// Handler redacts what it hands to another handler.
type Handler struct {
	inner slog.Handler
	// all: a group with the name of a secret is open; everything in it is one.
	all bool
}

// NewHandler wraps a handler.
func NewHandler(inner slog.Handler) *Handler { return &Handler{inner: inner} }

// Enabled implements slog.Handler.
func (h *Handler) Enabled(ctx context.Context, l slog.Level) bool { return h.inner.Enabled(ctx, l) }

// Handle implements slog.Handler.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	out := slog.NewRecord(r.Time, r.Level, Redact(r.Message), r.PC)
	r.Attrs(func(a slog.Attr) bool {
		out.AddAttrs(h.attr(a, h.all, 0))
		return true
	})
	return h.inner.Handle(ctx, out)
}

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	out := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		out[i] = h.attr(a, h.all, 0)
	}
	return &Handler{inner: h.inner.WithAttrs(out), all: h.all}
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{inner: h.inner.WithGroup(name), all: h.all || sensitiveKey(name)}
}

// maxDepth is how deep groups are followed; below, everything is redacted.
const maxDepth = 16

func (h *Handler) attr(a slog.Attr, all bool, depth int) slog.Attr {
	v := a.Value.Resolve()
	all = all || sensitiveKey(a.Key) || depth > maxDepth
	switch v.Kind() {
	case slog.KindGroup:
		in := v.Group()
		out := make([]slog.Attr, len(in))
		for i, g := range in {
			out[i] = h.attr(g, all, depth+1)
		}
		return slog.Attr{Key: a.Key, Value: slog.GroupValue(out...)}
	case slog.KindBool, slog.KindDuration, slog.KindTime:
		// These hold no secret whatever they are called: "token_lifetime".
		return slog.Attr{Key: a.Key, Value: v}
	}
	if all {
		return slog.String(a.Key, secret.Redacted)
	}
	switch v.Kind() {
	case slog.KindString:
		return slog.String(a.Key, Redact(v.String()))
	case slog.KindAny:
		return slog.Attr{Key: a.Key, Value: redactAny(v.Any())}
	}
	return slog.Attr{Key: a.Key, Value: v}
}
