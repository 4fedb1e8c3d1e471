package kbs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/coffer-project/coffer/tee"
)

// sortDevices orders devices by TEE, of which each may occur once: the
// protocol has one member for each.
func sortDevices(devices []tee.Attester) ([]tee.Attester, error) {
	if slices.Contains(devices, nil) {
		return nil, errors.New("kbs: client: a device's attester is nil")
	}
	out := slices.SortedFunc(slices.Values(devices), func(a, b tee.Attester) int { return cmp.Compare(a.TEE(), b.TEE()) })
	for i := range out[:max(0, len(out)-1)] {
		if name := out[i].TEE(); name == out[i+1].TEE() {
			return nil, fmt.Errorf("kbs: client: devices: %s occurs twice: one attester has to speak for all devices of a kind", name)
		}
	}
	return out, nil
}

// holder is an attester whose evidence must be of one moment with that of its
// devices: a log, and the register that stands behind it. Between Hold and its
// release nothing changes; evidence is made with the context that Hold returns.
type holder interface {
	Hold(ctx context.Context) (held context.Context, release func(), err error)
}

// collect makes all evidence that answers a challenge. The order is part of
// the protocol: the devices' evidence first, because the primary evidence is
// bound to the very string that carries it.
func (c *Client) collect(ctx context.Context, challenge *Challenge, key *TEEKey) (*Attestation, error) {
	if h, ok := c.attester.(holder); ok {
		held, release, err := h.Hold(ctx)
		if err != nil {
			return nil, err
		}
		defer release()
		ctx = held
	}
	a := &Attestation{Version: ProtocolVersion, InitData: c.initData, Nonce: challenge.Nonce, TEEKey: key.Public()}
	additional, err := c.additional(ctx, challenge, a)
	if err != nil {
		return nil, err
	}
	a.Additional = &additional
	digest, err := a.Digest(challenge.HashAlgorithm, challenge.Nonce)
	if err != nil {
		return nil, err
	}
	if a.Evidence, err = c.attester.Evidence(ctx, digest); err != nil {
		return nil, fmt.Errorf("%s evidence: %w", c.attester.TEE(), err)
	}
	return a, nil
}

// additional is the devices' evidence in the form that is sent, "" for none. A
// device that is not there has none (nil, without an error).
func (c *Client) additional(ctx context.Context, challenge *Challenge, a *Attestation) (string, error) {
	if len(c.devices) == 0 {
		return "", nil
	}
	digest, err := a.DeviceDigest(challenge.HashAlgorithm, challenge.Nonce)
	if err != nil {
		return "", err
	}
	all := make(map[tee.Name]json.RawMessage, len(c.devices))
	for _, d := range c.devices {
		evidence, err := d.Evidence(ctx, digest)
		if err != nil {
			return "", fmt.Errorf("%s evidence: %w", d.TEE(), err)
		}
		if evidence != nil {
			all[d.TEE()] = evidence
		}
	}
	if len(all) == 0 {
		return "", nil
	}
	doc, err := marshal(all)
	if err != nil {
		return "", fmt.Errorf("evidence of devices: %w", err)
	}
	return string(doc), nil
}
