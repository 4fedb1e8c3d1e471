package main

import (
	"context"
	"crypto/x509"
	"errors"
	"time"

	snpabi "github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	snppeer "github.com/google/go-sev-guest/verify"
	tdxabi "github.com/google/go-tdx-guest/abi"
	tdxpeer "github.com/google/go-tdx-guest/verify"
)

// verify compares the verifiers with Google's libraries over the same evidence
// and up to the same vendor roots, without fetching. The peers begin with
// decoded evidence; ours begins with JSON, does every other check too, and when
// cold makes the verifier as well.
func (b *bench) verify(ctx context.Context) error {
	return errors.Join(b.verifySNP(ctx), b.verifyTDX(ctx))
}

func (b *bench) verifySNP(ctx context.Context) error {
	f := &files{}
	s, report, vcek := snpSubject(f)
	if f.err != nil {
		return f.err
	}
	proto, err := snpabi.ReportToProto(report)
	if err != nil {
		return err
	}
	attestation := &spb.Attestation{Report: proto, CertificateChain: &spb.CertificateChain{VcekCert: vcek}}
	options := &snppeer.Options{DisableCertFetching: true, Now: at(2024, time.June)()}
	warm, err := s.warm(ctx)
	if err != nil {
		return err
	}
	return b.compare(ctx, "snp",
		&contender{name: "go-sev-guest", run: func(context.Context) error { return snppeer.SnpAttestation(attestation, options) }},
		&contender{name: "cold", run: s.cold, target: maxCold},
		&contender{name: "warm", run: warm, target: maxWarmSNP},
	)
}

func (b *bench) verifyTDX(ctx context.Context) error {
	f := &files{}
	quote, debug := tdxQuote(f), f.read(intel+"tdx_quote_v4_debug.bin")
	root, collateral := f.read("tee/dcap/intel_sgx_root.pem"), intel2023(f)
	s, judged := tdxSubject(f, quote, nil), tdxSubject(f, debug, collateral)
	if f.err != nil {
		return f.err
	}
	parsed, err := tdxabi.QuoteToProto(quote)
	if err != nil {
		return err
	}
	// With a root of its own the peer writes a warning each time; this is the
	// same certificate.
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(root) {
		return errors.New("no root certificate")
	}
	now := at(2023, time.July)()
	times := &tdxpeer.TimeSet{PckCertChain: now, TcbInfo: now, QeIdentity: now, PckCrl: now, RootCaCrl: now}
	warm, err := s.warm(ctx)
	if err != nil {
		return err
	}
	withCollateral, err := judged.warm(ctx)
	if err != nil {
		return err
	}
	return b.compare(ctx, "tdx",
		&contender{name: "go-tdx-guest", run: func(context.Context) error {
			return tdxpeer.TdxQuote(parsed, &tdxpeer.Options{Now: times, TrustedRoots: roots})
		}},
		&contender{name: "cold", run: s.cold, target: maxCold},
		&contender{name: "warm", run: warm, target: maxWarmTDX},
		&contender{name: "warm-with-collateral", run: withCollateral},
	)
}

// platforms takes the time of every verifier whose evidence is published.
// Secure Execution is not among them: its evidence answers a challenge that only
// a machine, or the test of tee/se/severify, can answer.
func (b *bench) platforms(ctx context.Context) error {
	f := &files{}
	list := others(f)
	if f.err != nil {
		return f.err
	}
	for _, s := range list {
		warm, err := s.warm(ctx)
		if err != nil {
			return err
		}
		for _, c := range []*contender{{name: "cold", run: s.cold}, {name: "warm", run: warm}} {
			if err := c.calibrate(ctx, b.slice); err != nil {
				return err
			}
			var times []timing
			for range b.pairs {
				t, err := c.time(ctx)
				if err != nil {
					return err
				}
				times = append(times, t)
			}
			b.absolute(s.name+"/"+c.name, times)
		}
	}
	return nil
}
