package problem

import (
	"context"
	"errors"
	"fmt"
	"net/http"
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
