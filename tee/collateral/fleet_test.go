package collateral_test

import (
	"crypto/rand"
	"crypto/sha512"
	"encoding/asn1"
	"encoding/binary"
	"encoding/json"
	"math/big"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/collateral"
	"github.com/coffer-project/coffer/tee/collateral/collateraltest"
	"github.com/coffer-project/coffer/tee/snp"
	"github.com/coffer-project/coffer/tee/snp/snpverify"
)

// attestation is evidence without a certificate, by a chip of the server's.
func attestation(t *testing.T, s *collateraltest.Server, n int) (json.RawMessage, tee.Expected) {
	t.Helper()
	family, model, stepping := uint8(0x19), uint8(1), uint8(1) // Milan
	r := snp.Report{
		Version: 3, Policy: snp.PolicyReserved1 | snp.PolicySMT, SigAlgo: snp.SigECDSAP384SHA384, ChipID: [64]byte(chipID(n % 10)),
		CurrentTCB: tcb(), ReportedTCB: tcb(), CommittedTCB: tcb(), LaunchTCB: tcb(), CPUIDFamily: &family, CPUIDModel: &model, CPUIDStepping: &stepping,
	}
	binary.LittleEndian.PutUint64(r.ReportData[:], uint64(n))
	_, key, err := s.VCEK(snp.Milan, r.ChipID[:], tcb())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := r.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha512.Sum384(raw[:snp.SignedSize])
	der, err := key.Sign(rand.Reader, sum[:], nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Signature = signatureOf(t, der)
	if raw, err = r.Bytes(); err != nil {
		t.Fatal(err)
	}
	data, err := snp.FromRaw(raw)
	if err != nil {
		t.Fatal(err)
	}
	return data, tee.Expected{ReportData: r.ReportData[:]}
}

// A thousand attestations of ten chips by the real verifier with the real
// checks, while the service gives one VCEK in ten seconds and takes a second
// for each answer: ten VCEKs, and all evidence is genuine.
func TestThousandVerifications(t *testing.T) {
	prepare(t)
	issued := time.Now() // the bubble has a clock of its own
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		chain, err := s.AMDChain(snp.Milan)
		if err != nil {
			t.Fatal(err)
		}
		roots := []snpverify.DevelopmentRoot{{Name: "test", PEM: chain}}
		checks, err := collateral.DefaultChecks(collateral.DevelopmentRoots{AMD: roots})
		if err != nil {
			t.Fatal(err)
		}
		now := func() time.Time { return issued }
		c := newClient(t, s, func(o *collateral.Options) { o.Checks, o.Now = checks, now })
		v, err := snpverify.New(snpverify.Options{Now: now, DevelopmentRoots: roots, Collateral: c.AMD()})
		if err != nil {
			t.Fatal(err)
		}
		s.Set(collateraltest.Behaviour{Interval: 10 * time.Second, RetryAfter: "seconds", Delay: time.Second})
		start := time.Now()
		var work sync.WaitGroup
		for n := range 1000 {
			evidence, want := attestation(t, s, n)
			work.Go(func() {
				if r, err := v.Verify(t.Context(), evidence, want); err != nil || !r.Simulated {
					t.Errorf("attestation %d: %v", n, err)
				}
			})
		}
		work.Wait()
		if total, most := s.Answers("blSPL"); total != 10 || most != 1 {
			t.Errorf("expected 10 VCEK fetches, got %d, of one chip up to %d", total, most)
		}
		if took := time.Since(start); took > 102*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

// signatureOf is a signature as reports hold it: little-endian, padded.
func signatureOf(t *testing.T, der []byte) (out snp.Signature) {
	t.Helper()
	var pair struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &pair); err != nil {
		t.Fatal(err)
	}
	pair.R.FillBytes(out.R[:])
	pair.S.FillBytes(out.S[:])
	slices.Reverse(out.R[:])
	slices.Reverse(out.S[:])
	return out
}
