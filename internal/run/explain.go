package run

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/sandbox"
)

// RefusedError is a proposal that the guest refused.
type RefusedError struct {
	*agentapi.Refusal
	message string
}

func (e *RefusedError) Error() string { return e.message }

// Explain turns what the guest answered into what a person reads: the refusal,
// and, where the machine was not launched as its image's manifest says, what
// differs.
func Explain(err error, sb *sandbox.Sandbox) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	var message strings.Builder
	message.WriteString("the guest: " + printable(st.Message()))
	if sb != nil {
		info := sb.Info()
		for _, change := range sandbox.Explain(info.Launched, info.Expected) {
			fmt.Fprintf(&message, "\nthe launch differs from the guest image's manifest: %s", change)
		}
	}
	for _, d := range st.Details() {
		if r, ok := d.(*agentapi.Refusal); ok {
			return &RefusedError{r, message.String()}
		}
	}
	return errors.New(strings.TrimSpace(message.String()))
}

// maxMessage bounds what a guest can put on the caller's terminal, in bytes.
const maxMessage = 16 << 10

// printable makes a guest's text safe for a terminal: the guest runs what its
// owner wrote, but this is another's screen.
func printable(s string) string {
	if len(s) > maxMessage {
		s = s[:maxMessage] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return '\uFFFD'
	}, strings.ToValidUTF8(s, "\uFFFD"))
}
