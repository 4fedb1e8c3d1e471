package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha512"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/collateral"
	"github.com/coffer-project/coffer/tee/collateral/collateraltest"
	"github.com/coffer-project/coffer/tee/snp"
	"github.com/coffer-project/coffer/tee/snp/snpverify"
)

const (
	chips        = 10
	attestations = 1000
	warmRounds   = 5 // of all attestations
)

// fleet has guests on ten chips attest a thousand times at once, without
// certificates in their evidence, while the key service gives one certificate
// in b.interval and takes a second for each answer. The verifier, the client,
// the sockets and the waiting are real; the chips, and the root above them, are
// the service's own.
func (b *bench) fleet(ctx context.Context) (err error) {
	service, err := collateraltest.New(nil)
	if err != nil {
		return err
	}
	all, root, err := guests(service)
	if err != nil {
		return err
	}
	checks, err := collateral.DefaultChecks(collateral.DevelopmentRoots{AMD: []snpverify.DevelopmentRoot{root}})
	if err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: service, ReadHeaderTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		err = errors.Join(err, server.Close())
		if end := <-served; !errors.Is(end, http.ErrServerClosed) {
			err = errors.Join(err, end)
		}
	}()
	dir, err := os.MkdirTemp("", "bench-evidence-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	client, err := collateral.New(collateral.Options{Dir: dir, Endpoints: service.Endpoints("http://" + listener.Addr().String()), Checks: checks})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	watched := &stopwatch{source: client.AMD()}
	verifier, err := snpverify.New(snpverify.Options{DevelopmentRoots: []snpverify.DevelopmentRoot{root}, Collateral: watched})
	if err != nil {
		return err
	}

	service.Set(collateraltest.Behaviour{Interval: b.interval, RetryAfter: "seconds", Delay: time.Second})
	errs := make([]error, len(all))
	begun := time.Now()
	var wait sync.WaitGroup
	for i, g := range all {
		wait.Go(func() { _, errs[i] = verifier.Verify(ctx, g.evidence, g.want) })
	}
	wait.Wait()
	took := time.Since(begun)
	failed := 0
	for _, err := range errs {
		if err != nil {
			failed++
			fmt.Fprintln(os.Stderr, err)
		}
	}
	total, most := service.Answers("blSPL")
	peer := fmt.Sprintf("%d attestations of %d chips, a VCEK in %s", attestations, chips, b.interval)
	b.report.AtMost("fleet/vcek-fetches", float64(total), "", chips, peer)
	b.report.AtMost("fleet/vcek-fetches-of-one-chip", float64(most), "", 1, "")
	b.report.AtMost("fleet/errors", float64(failed), "", 0, "")
	b.report.Add("fleet/refused-requests", float64(service.Refused()), "", "status 429")
	b.report.Add("fleet/time", took.Seconds(), "s", fmt.Sprintf("the service gives %d in %.0f s", chips, ((chips-1)*b.interval+time.Second).Seconds()))
	if failed > 0 {
		return nil
	}
	return b.warmFleet(ctx, verifier, watched, all, service)
}

// warmFleet takes the time that collateral adds once it is known.
func (b *bench) warmFleet(ctx context.Context, v tee.Verifier, watched *stopwatch, all []guest, service *collateraltest.Server) error {
	before, _ := service.Answers("")
	watched.taken = nil
	var without, with []time.Duration
	for range warmRounds {
		for _, g := range all {
			for evidence, list := range map[*json.RawMessage]*[]time.Duration{&g.evidence: &without, &g.whole: &with} {
				begun := time.Now()
				if _, err := v.Verify(ctx, *evidence, g.want); err != nil {
					return err
				}
				*list = append(*list, time.Since(begun))
			}
		}
	}
	if after, _ := service.Answers(""); after != before {
		return fmt.Errorf("the warm client asked %d times", after-before)
	}
	ms := func(list []time.Duration, q float64) float64 {
		return float64(quantile(list, q)) / float64(time.Millisecond)
	}
	b.report.AtMost("fleet/warm-lookup-p99", ms(watched.taken, 0.99), "ms", maxLookup, "in the client")
	b.report.Add("fleet/warm-lookup-median", ms(watched.taken, 0.5), "ms", "")
	b.report.Add("fleet/warm-verify-median", ms(without, 0.5), "ms", "certificate by the client")
	b.report.Add("fleet/warm-verify-p99", ms(without, 0.99), "ms", "")
	b.report.Add("fleet/warm-verify-whole-median", ms(with, 0.5), "ms", "certificate in the evidence")
	b.report.Add("fleet/warm-verify-whole-p99", ms(with, 0.99), "ms", "")
	return nil
}

// guest is one attestation: evidence without and with the chip's certificate.
type guest struct {
	evidence, whole json.RawMessage
	want            tee.Expected
}

// guests signs a report for each attestation with the keys of the service's
// chips.
func guests(service *collateraltest.Server) ([]guest, snpverify.DevelopmentRoot, error) {
	var out []guest
	for i := range attestations {
		g, err := newGuest(service, i)
		if err != nil {
			return nil, snpverify.DevelopmentRoot{}, err
		}
		out = append(out, g)
	}
	chain, err := service.AMDChain(snp.Milan)
	return out, snpverify.DevelopmentRoot{Name: "benchmark", PEM: chain}, err
}

func newGuest(service *collateraltest.Server, i int) (guest, error) {
	tcb := snp.TCB{Bootloader: 4, SNP: 24, Microcode: 219}
	family, model, stepping := uint8(0x19), uint8(1), uint8(1) // Milan
	firmware := snp.FirmwareVersion{Major: 1, Minor: 55, Build: 40}
	r := snp.Report{
		Version: 3, Policy: snp.PolicyReserved1 | snp.PolicySMT, SigAlgo: snp.SigECDSAP384SHA384,
		CurrentTCB: tcb, ReportedTCB: tcb, CommittedTCB: tcb, LaunchTCB: tcb, Current: firmware, Committed: firmware,
		CPUIDFamily: &family, CPUIDModel: &model, CPUIDStepping: &stepping,
	}
	copy(r.ChipID[:], fmt.Sprintf("chip %d", i%chips))
	binary.LittleEndian.PutUint64(r.ReportData[:], uint64(i))
	der, key, err := service.VCEK(snp.Milan, r.ChipID[:], tcb)
	if err != nil {
		return guest{}, err
	}
	raw, err := signed(&r, key)
	if err != nil {
		return guest{}, err
	}
	g := guest{want: tee.Expected{ReportData: r.ReportData[:]}}
	if g.evidence, err = encode(raw); err != nil {
		return guest{}, err
	}
	g.whole, err = encode(raw, snp.Certificate{Type: snp.CertVCEK, Data: der})
	return g, err
}

func encode(report []byte, certs ...snp.Certificate) (json.RawMessage, error) {
	e, err := snp.NewEvidence(report, certs)
	if err != nil {
		return nil, err
	}
	return e.JSON()
}

// signed is r with a signature by key.
func signed(r *snp.Report, key *ecdsa.PrivateKey) ([]byte, error) {
	raw, err := r.Bytes()
	if err != nil {
		return nil, err
	}
	sum := sha512.Sum384(raw[:snp.SignedSize])
	x, y, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		return nil, err
	}
	for _, half := range []struct {
		to *[72]byte
		n  *big.Int
	}{{&r.Signature.R, x}, {&r.Signature.S, y}} {
		half.n.FillBytes(half.to[:])
		slices.Reverse(half.to[:])
	}
	return r.Bytes()
}

// stopwatch takes the time of lookups.
type stopwatch struct {
	source snpverify.Collateral
	mu     sync.Mutex
	taken  []time.Duration
}

// VCEK implements [snpverify.Collateral].
func (s *stopwatch) VCEK(ctx context.Context, g snp.Generation, chipID []byte, tcb snp.TCB) ([]byte, error) {
	begun := time.Now()
	der, err := s.source.VCEK(ctx, g, chipID, tcb)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken = append(s.taken, time.Since(begun))
	return der, err
}

// CRL implements [snpverify.Collateral].
func (s *stopwatch) CRL(ctx context.Context, g snp.Generation, signer snp.Signer) ([]byte, error) {
	return s.source.CRL(ctx, g, signer)
}
