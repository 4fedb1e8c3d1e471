package collateral_test

import (
	"errors"
	"testing"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/snp"
)

// Who asks is told when it has to wait for a service, and only then.
func TestSaysWhenItWaits(t *testing.T) {
	t.Parallel()
	c := newClient(t, newServer(t), nil)
	defer func() { _ = c.Close() }()
	var began, ended int
	var refuse error
	ctx := tee.WithWaiting(t.Context(), func() func() error {
		began++
		return func() error {
			ended++
			return refuse
		}
	})
	for range 2 {
		if _, err := c.AMD().VCEK(ctx, snp.Milan, chipID(1), tcb()); err != nil {
			t.Fatal(err)
		}
	}
	if began != 1 || ended != 1 {
		t.Errorf("waited %d times and went on %d times, expected once each: the second answer is at hand", began, ended)
	}
	refuse = errors.New("no place any more")
	_, err := c.AMD().VCEK(ctx, snp.Milan, chipID(2), tcb())
	if lacking, ok := errors.AsType[*tee.CollateralError](err); !ok || !errors.Is(err, refuse) || lacking.Reason == tee.CollateralInvalid {
		t.Errorf("who may not go on gets %v", err)
	}
}
