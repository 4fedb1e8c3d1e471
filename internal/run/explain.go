package run

import (
	"errors"
	"fmt"
	"strings"

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
	message := "the guest: " + st.Message()
	if sb != nil {
		info := sb.Info()
		for _, change := range sandbox.Explain(info.Launched, info.Expected) {
			message += fmt.Sprintf("\nthe launch differs from the guest image's manifest: %s", change)
		}
	}
	for _, d := range st.Details() {
		if r, ok := d.(*agentapi.Refusal); ok {
			return &RefusedError{r, message}
		}
	}
	return errors.New(strings.TrimSpace(message))
}
