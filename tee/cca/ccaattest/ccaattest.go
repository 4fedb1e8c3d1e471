// Package ccaattest gets Arm CCA tokens from the kernel, through the report
// interface that all TEEs share (configfs-tsm; the driver arm-cca-guest is in
// Linux 6.13 and newer). It has been tried against an emulated interface only.
package ccaattest

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/linuxtsm"
	"github.com/google/go-configfs-tsm/report"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/cca"
	"github.com/coffer-project/coffer/tee/internal/tsm"
)

// provider is what the kernel's driver calls itself.
const provider = "arm_cca_guest"

type attester struct {
	client configfsi.Client
	turn   tsm.Turn
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
	return &attester{client: client, turn: tsm.NewTurn()}
}

// TEE implements [tee.Attester].
func (*attester) TEE() tee.Name { return tee.CCA }

// Evidence implements [tee.Attester].
func (a *attester) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	if len(reportData) > cca.ChallengeSize {
		return nil, fmt.Errorf("ccaattest: report data: expected at most %d bytes, got %d", cca.ChallengeSize, len(reportData))
	}
	r, err := a.request(ctx, tee.Fit(reportData, cca.ChallengeSize))
	if err != nil {
		return nil, err
	}
	return (&cca.Evidence{Token: r.raw}).JSON()
}

// InitData implements [tee.Attester]: the realm's personalization value, 64
// bytes.
func (a *attester) InitData(ctx context.Context) ([]byte, error) {
	fresh := make([]byte, cca.ChallengeSize)
	_, _ = rand.Read(fresh) // never fails
	r, err := a.request(ctx, fresh)
	if err != nil {
		return nil, err
	}
	return r.token.Realm.Personalization, nil
}

type result struct {
	raw   []byte
	token *cca.Token
}

// request gets one token.
func (a *attester) request(ctx context.Context, challenge []byte) (result, error) {
	r, err := tsm.Do(ctx, a.turn, func() (result, error) { return a.get(challenge) })
	if err != nil {
		return result{}, fmt.Errorf("ccaattest: %w", err)
	}
	return r, nil
}

func (a *attester) get(challenge []byte) (result, error) {
	response, err := tsm.Get(a.client, provider, &report.Request{InBlob: challenge})
	if err != nil {
		return result{}, err
	}
	t, err := cca.ParseToken(response.OutBlob)
	if err != nil {
		return result{}, err
	}
	if string(t.Realm.Challenge) != string(challenge) {
		return result{}, fmt.Errorf("cca-realm-challenge: expected %x, got %x", challenge, t.Realm.Challenge)
	}
	return result{raw: response.OutBlob, token: t}, nil
}
