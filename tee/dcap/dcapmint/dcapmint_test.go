package dcapmint_test

import (
	"testing"
	"time"

	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/dcap/dcapmint"
	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
)

func authority(t *testing.T) *dcapmint.Authority {
	t.Helper()
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	a, err := dcapmint.NewAuthority(dcapmint.Profile{RootName: "Root", Organization: "Test", From: from, To: from.AddDate(1, 0, 0)})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// A platform that was stored and put together again signs as before, and each
// platform has keys of its own.
func TestPlatform(t *testing.T) {
	t.Parallel()
	a := authority(t)
	first, err := dcapmint.NewPlatform(a, &dcapquote.PCK{}, dcap.ProcessorCA, dcapquote.EnclaveReport{Flags: dcapquote.AttributeInit})
	if err != nil {
		t.Fatal(err)
	}
	again := *first
	second, err := dcapmint.NewPlatform(a, &dcapquote.PCK{}, dcap.ProcessorCA, dcapquote.EnclaveReport{Flags: dcapquote.AttributeInit})
	if err != nil {
		t.Fatal(err)
	}
	signed := make([]byte, 432)
	endorsement := func(p *dcapmint.Platform) string {
		quote, err := p.Quote(signed, 3)
		if err != nil {
			t.Fatal(err)
		}
		s, err := dcapquote.ParseSignature(quote[len(signed):], 3)
		if err != nil {
			t.Fatal(err)
		}
		return string(s.Endorsement)
	}
	if endorsement(first) != endorsement(&again) || endorsement(first) == endorsement(second) {
		t.Error("platforms and their keys do not go together")
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	a := authority(t)
	if _, err := dcapmint.NewPlatform(a, &dcapquote.PCK{}, "other", dcapquote.EnclaveReport{}); err == nil {
		t.Error("a PCK certificate of no CA")
	}
	if _, err := a.PCKCRL("other", dcapmint.Revocations{}); err == nil {
		t.Error("a revocation list of no CA")
	}
	p, err := dcapmint.NewPlatform(a, &dcapquote.PCK{}, dcap.PlatformCA, dcapquote.EnclaveReport{})
	if err != nil {
		t.Fatal(err)
	}
	p.QEAuthData = make([]byte, 1<<16)
	if _, err := p.Quote(nil, 4); err == nil {
		t.Error("authentication data whose length cannot be encoded")
	}
}
