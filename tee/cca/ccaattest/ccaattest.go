// Package ccaattest gets Arm CCA tokens from the kernel, through the report
// interface that all TEEs share (configfs-tsm; the driver arm-cca-guest is in
// Linux 6.13 and newer). It has been tried against an emulated interface only.
package ccaattest

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/linuxtsm"
	"github.com/google/go-configfs-tsm/report"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/cca"
)

const (
	// provider is what the kernel's driver calls itself.
	provider = "arm_cca_guest"
	// maxRaces is how often a request is repeated that another process
	// disturbed.
	maxRaces = 3
)

type attester struct {
	client configfsi.Client
	// turn is held by the one request under way: the kernel serialises them
	// anyway, and a waiting caller can give up.
	turn chan struct{}
}

// New returns the attester of a realm. It fails where configfs is not mounted or
// the kernel has no report interface.
func New() (tee.Attester, error) {
	client, err := linuxtsm.MakeClient()
	if err != nil {
		return nil, fmt.Errorf("ccaattest: %w; is configfs mounted on /sys/kernel/config, and the arm-cca-guest module loaded?", err)
	}
	return NewWithClient(client), nil
}

// NewWithClient is New over another configfs.
func NewWithClient(client configfsi.Client) tee.Attester {
	return &attester{client: client, turn: make(chan struct{}, 1)}
}

// TEE implements [tee.Attester].
func (*attester) TEE() tee.Name { return tee.CCA }

// Evidence implements [tee.Attester].
func (a *attester) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	if len(reportData) > cca.ChallengeSize {
		return nil, fmt.Errorf("ccaattest: report data: expected at most %d bytes, got %d", cca.ChallengeSize, len(reportData))
	}
	raw, _, err := a.request(ctx, tee.Fit(reportData, cca.ChallengeSize))
	if err != nil {
		return nil, err
	}
	return (&cca.Evidence{Token: raw}).JSON()
}

// InitData implements [tee.Attester]: the realm's personalization value, 64
// bytes.
func (a *attester) InitData(ctx context.Context) ([]byte, error) {
	fresh := make([]byte, cca.ChallengeSize)
	_, _ = rand.Read(fresh) // never fails
	_, t, err := a.request(ctx, fresh)
	if err != nil {
		return nil, err
	}
	return t.Realm.Personalization, nil
}

type result struct {
	raw   []byte
	token *cca.Token
	err   error
}

// request gets one token. The kernel's call cannot be interrupted: when ctx ends
// first, it finishes in the background and its result is dropped.
func (a *attester) request(ctx context.Context, challenge []byte) ([]byte, *cca.Token, error) {
	select {
	case a.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("ccaattest: waiting for an earlier request: %w", ctx.Err())
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-a.turn }()
		done <- a.get(challenge)
	}()
	select {
	case r := <-done:
		return r.raw, r.token, r.err
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("ccaattest: the kernel's report: %w", ctx.Err())
	}
}

func (a *attester) get(challenge []byte) result {
	var response *report.Response
	var err error
	for range maxRaces {
		response, err = report.Get(a.client, &report.Request{InBlob: challenge})
		if _, raced := errors.AsType[*report.GenerationErr](err); !raced {
			break
		}
	}
	if err != nil {
		return result{err: fmt.Errorf("ccaattest: the kernel's report: %w", err)}
	}
	if got := strings.TrimSpace(response.Provider); got != provider {
		return result{err: fmt.Errorf("ccaattest: report provider: expected %q, got %.40q; this is not a CCA realm", provider, got)}
	}
	t, err := cca.ParseToken(response.OutBlob)
	if err != nil {
		return result{err: fmt.Errorf("ccaattest: %w", err)}
	}
	if string(t.Realm.Challenge) != string(challenge) {
		return result{err: fmt.Errorf("ccaattest: cca-realm-challenge: expected %x, got %x", challenge, t.Realm.Challenge)}
	}
	return result{raw: response.OutBlob, token: t}
}
