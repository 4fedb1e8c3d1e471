package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/layer"
)

// The operator of a hardware guest learns the kind of a failure, and nothing of
// what the workload said.
func TestCauseOfAFailure(t *testing.T) {
	t.Parallel()
	const hidden = "hunter2"
	dial := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", err)}
	}
	for want, errs := range map[*kind][]error{
		&closed:      {dial(unix.ECONNREFUSED)},
		&unreachable: {dial(unix.ENETUNREACH), dial(unix.EHOSTUNREACH)},
		&unresolved:  {&net.DNSError{Name: hidden, IsNotFound: true}},
		&slow:        {dial(unix.ETIMEDOUT), os.ErrDeadlineExceeded, &net.DNSError{Name: hidden, IsTimeout: true}},
		&untrusted:   {x509.UnknownAuthorityError{}},
		&unwelcome:   {fmt.Errorf("%s: %w", hidden, oci.ErrUnauthorized)},
		&absent:      {fmt.Errorf("%w: %s", oci.ErrNotFound, hidden)},
		&altered:     {&oci.MismatchError{}},
		&forged:      {crypt.ErrMAC},
		&excessive:   {fmt.Errorf("%w: %s", layer.ErrLimit, hidden)},
		&full:        {&os.PathError{Op: "write", Path: hidden, Err: unix.ENOSPC}},
		&overloaded:  {&kbs.StatusError{Status: 503}, &kbs.StatusError{Status: 429}},
	} {
		for _, e := range errs {
			a := &Agent{o: Options{Attestation: factsSource(t, false)}, log: slog.New(slog.DiscardHandler), events: newEventLog(time.Now)}
			st, _ := status.FromError(a.fail(t.Context(), "CreateContainer", failed("image", fmt.Errorf("%s: %w", hidden, e))))
			if !strings.Contains(st.Message(), "image: "+want.what+"; "+want.do) || strings.Contains(st.Message(), hidden) {
				t.Errorf("%v: told %q, want it to name %q only", e, st.Message(), want.what)
			}
		}
	}
	if got := cause(errors.New(hidden)); got != nil {
		t.Errorf("another failure has the cause %q", got)
	}
	// A simulated guest tells everything, and what to do unless that is said.
	for err, want := range map[error]string{
		fmt.Errorf("image: %w", oci.ErrNotFound):   "image: not found; " + absent.do,
		fmt.Errorf("image: %w; help", unix.ENOSPC): "image: no space left on device; help",
		errors.New("something else"):               "something else",
	} {
		a := &Agent{o: Options{Attestation: factsSource(t, true)}}
		if got := a.told(t.Context(), "CreateContainer", err); got != want {
			t.Errorf("told %q, want %q", got, want)
		}
	}
}

// A connection that was not made in its own time is not the host's limit, although
// package net says that it is context.DeadlineExceeded.
func TestNetworkTimeoutIsNotTheHosts(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithDeadline(t.Context(), time.Unix(1, 0))
	defer cancel()
	_, err := (&net.Dialer{Deadline: time.Unix(1, 0)}).DialContext(t.Context(), "tcp", "127.0.0.1:1")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("expected a time-out of the network, got %v", err)
	}
	if got := codeOf(t.Context(), err); got != codes.Internal {
		t.Errorf("while the host waits: %s", got)
	}
	if got := codeOf(ctx, err); got != codes.DeadlineExceeded {
		t.Errorf("when the host's time is over: %s", got)
	}
}
