package collateral

import (
	"context"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/dcap"
)

// Intel is the collateral of SGX and TDX, on the client's track: a
// [dcap.Collateral].
type Intel struct{ client *Client }

var _ dcap.Collateral = Intel{}

// Intel returns the client in the shape that dcap's verifiers want.
func (c *Client) Intel() Intel { return Intel{c} }

// TCBInfo implements [dcap.Collateral].
func (n Intel) TCBInfo(ctx context.Context, k dcap.Kind, fmspc [6]byte) (dcap.Signed, error) {
	i, err := TCBInfoItem(string(k), fmspc, n.client.update)
	return n.signed(ctx, i, err)
}

// QEIdentity implements [dcap.Collateral].
func (n Intel) QEIdentity(ctx context.Context, k dcap.Kind) (dcap.Signed, error) {
	i, err := QEIdentityItem(string(k), n.client.update)
	return n.signed(ctx, i, err)
}

// PCKCRL implements [dcap.Collateral].
func (n Intel) PCKCRL(ctx context.Context, ca dcap.CA) (dcap.Signed, error) {
	i, err := PCKCRLItem(string(ca))
	return n.signed(ctx, i, err)
}

// RootCRL implements [dcap.Collateral].
func (n Intel) RootCRL(ctx context.Context) ([]byte, error) {
	s, err := n.signed(ctx, RootCRLItem(), nil)
	return s.Body, err
}

func (n Intel) signed(ctx context.Context, i Item, err error) (dcap.Signed, error) {
	if err != nil {
		return dcap.Signed{}, &tee.CollateralError{Item: "Intel's collateral", Reason: tee.CollateralUnknown, Err: err}
	}
	e, err := n.client.Get(ctx, i)
	if err != nil {
		return dcap.Signed{}, err
	}
	return dcap.Signed{Body: e.Body, IssuerChain: e.Chain}, nil
}
