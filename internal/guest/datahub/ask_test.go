package datahub

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
)

// asker answers with what it was asked.
type asker struct {
	*fakeBroker
	asked int
}

func (a *asker) Ask(_ context.Context, uri kbs.ResourceURI, body []byte) (secret.Bytes, error) {
	a.asked++
	return secret.New([]byte(uri.String() + " " + string(body))), nil
}

func TestAsk(t *testing.T) {
	t.Parallel()
	const uri = "kbs+keyless:///verify"
	a, other := &asker{fakeBroker: newBroker(nil)}, newBroker(nil)
	h := Open(Options{Default: a, Named: map[string]Broker{"other": other}})
	defer h.Close()
	for range 2 { // nothing is kept
		v, err := h.Ask(t.Context(), uri, []byte("x"))
		if err != nil || string(v.Expose()) != uri+" x" {
			t.Errorf("%q, %v", v.Expose(), err)
		}
	}
	if a.asked != 2 {
		t.Errorf("asked %d times", a.asked)
	}
	for in, want := range map[string]string{"kbs+keyless://other/verify": "answers no questions", "kbs+keyless://none/verify": "no trustee", "x": "resource URI"} {
		if _, err := h.Ask(t.Context(), in, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: want %q, got %v", in, want, err)
		}
	}
	if _, err := New(nil).Ask(t.Context(), uri, nil); !errors.Is(err, ErrNoBroker) {
		t.Errorf("got %v", err)
	}
}
