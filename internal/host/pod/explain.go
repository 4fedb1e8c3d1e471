package pod

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/internal/host/space"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

// Refused is a proposal that the guest refused. Its message is the guest's, made
// safe to print.
type Refused struct {
	// Rule and Path name what was refused; a guest with real hardware tells no
	// more.
	Rule, Path string
	message    string
}

func (e *Refused) Error() string { return e.message }

// Unwrap makes it an error that containerd knows: permission denied.
func (e *Refused) Unwrap() error { return errdefs.ErrPermissionDenied }

// maxMessage bounds what a guest can put into an event, in bytes: with what the
// host adds it is about a KiB, which is what is kept of an event.
const maxMessage = 900

// explain turns what the guest answered into what a person reads. The guest is
// not trusted: its text is bounded and made safe.
func (p *Pod) explain(err error) error {
	if err == nil {
		return nil
	}
	if end, ok := errors.AsType[*vmm.End](err); ok {
		return p.explainEnd(end, err)
	}
	if _, ok := errors.AsType[*timeoutError](err); ok {
		return err
	}
	st, text := answer(err)
	if st == nil {
		return space.Explain(err)
	}
	// What is wrapped around it says at what.
	what, _, _ := strings.Cut(err.Error(), text)
	var b strings.Builder
	b.WriteString(what + "the guest: " + printable(st.Message()))
	if m := p.Machine(); m != nil {
		info := m.Info()
		for _, change := range sandbox.Explain(info.Launched, info.Expected) {
			fmt.Fprintf(&b, "; the launch differs from the guest image's manifest: %s", change)
		}
	}
	if full := p.scratchFull(); full != "" {
		b.WriteString("; " + full)
	}
	if r := refusal(err); r != nil {
		return &Refused{Rule: printable(r.GetRule()), Path: printable(r.GetPath()), message: b.String()}
	}
	return &guestError{message: b.String(), err: err}
}

// guestError keeps the status of an answer behind its text.
type guestError struct {
	message string
	err     error
}

func (e *guestError) Error() string { return e.message }
func (e *guestError) Unwrap() error { return e.err }

// answer finds the guest's answer in an error, and its text there; nil: there is
// none.
func answer(err error) (*status.Status, string) {
	if err == nil {
		return nil, ""
	}
	with, ok := errors.AsType[interface {
		error
		GRPCStatus() *status.Status
	}](err)
	if !ok {
		return nil, ""
	}
	return with.GRPCStatus(), with.Error()
}

// refusal finds the guest's refusal in an error; nil: it is none.
func refusal(err error) *agentapi.Refusal {
	st, _ := answer(err)
	if st == nil {
		return nil
	}
	for _, d := range st.Details() {
		if r, ok := d.(*agentapi.Refusal); ok {
			return r
		}
	}
	return nil
}

// gone tells that what was to be removed is not there.
func gone(err error) bool {
	st, _ := answer(err)
	return st != nil && st.Code() == codes.NotFound
}

// printable makes a guest's text one bounded line that is safe to print.
func printable(s string) string {
	if len(s) > maxMessage { // what to do is at the end
		const end = maxMessage / 3
		s = s[:maxMessage-end] + " … " + s[len(s)-end:]
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case unicode.IsPrint(r):
			return r
		}
		return '\uFFFD'
	}, strings.ToValidUTF8(s, "\uFFFD"))
}
