package agent

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/podpolicy"
)

// What a guest of a hardware TEE writes to its log, which is a console of the
// host's, counts as told just as what it answers.
func TestWhatAHostIsTold(t *testing.T) {
	t.Parallel()
	const hidden = "hunter2"
	for _, tt := range []struct {
		name string
		err  error
		code codes.Code
		// told is what every host may read, hidden or not.
		told string
		// everyone: the error has nothing in it that the host must not know.
		everyone bool
	}{
		{"refusal", &podpolicy.Refusal{Rule: podpolicy.RuleImageConfig, Path: "image.user", Expected: hidden, Got: hidden}, codes.PermissionDenied, "image.user", false},
		{"failure", failed("runtime", fmt.Errorf("crun create: exit status 1: %s", hidden)), codes.FailedPrecondition, "runtime", false},
		{"failure of the agent's", errors.New("registry credentials: auths: " + hidden), codes.Internal, "CreateContainer", false},
		{"wrapped", fmt.Errorf("%s: %w", hidden, failed("image", errors.New("x"))), codes.FailedPrecondition, "image", false},
		{"not found", notFound("container %q is not known", hidden), codes.NotFound, hidden, true},
		{"state", unready("command %q is not started", hidden), codes.FailedPrecondition, hidden, true},
		{"not a protobuf string", failed("image", errors.New("layer: \xff")), codes.FailedPrecondition, "image", false},
	} {
		for _, simulated := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/simulated=%v", tt.name, simulated), func(t *testing.T) {
				t.Parallel()
				var log bytes.Buffer
				a := &Agent{o: Options{Attestation: factsSource(t, simulated)}, log: slog.New(slog.NewTextHandler(&log, nil)), events: newEventLog(time.Now)}
				err := a.fail(t.Context(), "CreateContainer", tt.err)
				st, _ := status.FromError(err)
				if st.Code() != tt.code {
					t.Errorf("code %v, want %v", st.Code(), tt.code)
				}
				text := st.Message()
				if !utf8.ValidString(text) {
					t.Errorf("message %q cannot be sent", text)
				}
				if !simulated && !strings.Contains(text, tt.told) {
					t.Errorf("told %q, want it to have %q", text, tt.told)
				}
				if secret := strings.Contains(tt.err.Error(), hidden) && !tt.everyone; secret {
					if got := strings.Contains(text, hidden); got != simulated {
						t.Errorf("simulated %v: told %q", simulated, text)
					}
					if got := strings.Contains(log.String(), hidden); got != simulated {
						t.Errorf("simulated %v: logged %q", simulated, log.String())
					}
				}
				for _, e := range a.events.events {
					if strings.Contains(e.String(), hidden) && !simulated {
						t.Errorf("event %v", e)
					}
				}
			})
		}
	}
}

// A host that started a machine without a TEE, or with a network that cannot
// be, has to learn of it.
func TestAHostIsToldWhatItDidItself(t *testing.T) {
	t.Parallel()
	a := &Agent{o: Options{Attestation: factsSource(t, false)}, log: slog.New(slog.DiscardHandler), events: newEventLog(time.Now)}
	for _, call := range []string{"Hello", "CreateSandbox", "UpdateNetwork"} {
		if err := a.fail(t.Context(), call, errors.New("no hardware TEE found")); !strings.Contains(err.Error(), "no hardware TEE found") {
			t.Errorf("%s: told %v", call, err)
		}
	}
}
