package problem

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode"

	"github.com/coffer-project/coffer/kbs"
)

// TestReasonsArePlain: what a stranger sends is read by an administrator.
func TestReasonsArePlain(t *testing.T) {
	t.Parallel()
	hostile := "a\x1b]0;owned\x07\nlevel=INFO granted\u202e\u009b\xff"
	e := Denied(Attestation, "denied", kbs.Reason{Rule: "r", Expected: "ä", Got: hostile}, kbs.Reason{Rule: "s", Got: strings.Repeat("x", 1<<20) + hostile})
	for _, text := range []string{e.Info.Detail, e.Info.Reason.Got} {
		if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) || len(text) > 40<<10 {
			t.Errorf("%d bytes: %.200q", len(text), text)
		}
	}
	if e.Info.Reason.Expected != "ä" || !strings.Contains(e.Info.Reason.Got, "owned") || e.Status != http.StatusForbidden {
		t.Errorf("%+v", e.Info.Reason)
	}
}

func TestInternal(t *testing.T) {
	t.Parallel()
	for cause, status := range map[error]int{
		errors.New("the disk at /secret/path"):                 http.StatusInternalServerError,
		fmt.Errorf("rule allow: %w", context.DeadlineExceeded): http.StatusServiceUnavailable,
		fmt.Errorf("gone: %w", context.Canceled):               http.StatusServiceUnavailable,
	} {
		e := Internal(Storage, cause)
		if e.Status != status || strings.Contains(e.Info.Detail, cause.Error()) || !errors.Is(e, cause) {
			t.Errorf("%v: %+v", cause, e)
		}
	}
}

// TestReasons: all reasons are told, in a body that clients read whole.
func TestReasons(t *testing.T) {
	t.Parallel()
	for size, kept := range map[int]int{10: 10, 3 << 10: 1 << 10, 1 << 20: 256} {
		var list []kbs.Reason
		for range 40 {
			list = append(list, kbs.Reason{Rule: "r", Expected: strings.Repeat(`"`, size)})
		}
		e := Denied(PolicyDeny, "denied", list...)
		doc, err := json.Marshal(e.Info)
		if err != nil || len(doc) > kbs.MaxErrorBytes || len(e.Info.Reasons) != maxReasons || e.Info.Reason.Rule != "r" || len(list[0].Expected) != size {
			t.Errorf("%d: %d bytes, %d reasons, %v", size, len(doc), len(e.Info.Reasons), err)
		}
		back := kbs.NewStatusError("op", e.Status, doc)
		if len(back.Info.Reasons) != maxReasons || len(back.Info.Reasons[0].Expected) < min(kept, 256) {
			t.Errorf("%d: client got %d reasons", size, len(back.Info.Reasons))
		}
	}
	if e := Denied(PolicyDeny, "denied"); e.Status != http.StatusForbidden || e.Info.Reason != nil || e.Info.Reasons != nil {
		t.Errorf("%+v", e)
	}
}

// TestUnavailableEndsTheConnection: whoever tries again must not come back to
// the same replica.
func TestUnavailableEndsTheConnection(t *testing.T) {
	t.Parallel()
	for _, e := range []*Error{Busy(Storage, "the database does not answer"), Internal(Storage, errors.New("cause")), New(http.StatusNotFound, InvalidPath, "none")} {
		w := httptest.NewRecorder()
		Write(t.Context(), slog.New(slog.DiscardHandler), w, e)
		if closes := w.Header().Get("Connection") == "close"; closes != (e.Status == http.StatusServiceUnavailable) {
			t.Errorf("%d: connection closed: %v", e.Status, closes)
		}
	}
}
