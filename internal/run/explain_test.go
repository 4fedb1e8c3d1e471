package run

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestExplainKeepsTheTerminalSafe(t *testing.T) {
	t.Parallel()
	err := Explain(status.Error(codes.Internal, "pull \x1b]0;owned\a\x1b[2J failed\nline two"+strings.Repeat("x", 2*maxMessage)), nil)
	if got := err.Error(); strings.ContainsAny(got, "\x1b\a") || !strings.Contains(got, "failed\nline two") || len(got) > maxMessage+100 {
		t.Errorf("a guest's text reached the terminal: %d bytes, %.80q", len(got), got)
	}
}
