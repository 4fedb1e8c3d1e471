// Package tsm gets attestation reports from the kernel, through the interface
// that all TEEs share (configfs-tsm; Linux,
// Documentation/ABI/testing/configfs-tsm-report), and waits for the kernel without
// being stuck with it.
package tsm

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/report"
)

// MaxRaces is how often a request is made of which another process disturbs every
// one.
const MaxRaces = 3

// Get makes a request of the kernel's driver that calls itself provider. It
// fails where another driver answers.
func Get(client configfsi.Client, provider string, request *report.Request) (*report.Response, error) {
	var response *report.Response
	var err error
	for range MaxRaces {
		response, err = report.Get(client, request)
		if _, raced := errors.AsType[*report.GenerationErr](err); !raced {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	if got := strings.TrimSpace(response.Provider); got != provider {
		return nil, fmt.Errorf("report provider: expected %q, got %.40q; this is a guest of another kind", provider, got)
	}
	return response, nil
}

// Turn lets one call go at a time: the kernel serialises them anyway, and a
// waiting caller can give up. It is safe for concurrent use.
type Turn struct{ taken chan struct{} }

// NewTurn returns a turn that nobody has.
func NewTurn() Turn { return Turn{make(chan struct{}, 1)} }

// Do waits for its turn and calls the kernel. The call cannot be interrupted:
// when ctx ends first, it goes on in the background, keeps its turn until it has
// ended, and its result is dropped.
func Do[T any](ctx context.Context, turn Turn, call func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	select {
	case turn.taken <- struct{}{}:
	case <-ctx.Done():
		return none, fmt.Errorf("waiting for an earlier request: %w", ctx.Err())
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-turn.taken }()
		value, err := call()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return none, fmt.Errorf("waiting for the kernel: %w", ctx.Err())
	}
}
