package softtee

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/snp"
	"github.com/coffer-project/coffer/tee/softtee/softport"
)

// DefaultGuestPolicy is the guest policy of a launch that names none:
// multithreading allowed, debugging and migration not.
const DefaultGuestPolicy = snp.PolicyReserved1 | snp.PolicySMT

// Policy is what the host fixes at launch beside the measured content.
type Policy struct {
	// HostData is the report's HOST_DATA: the initdata digest, fitted.
	HostData [32]byte
	// GuestPolicy is the report's POLICY. Zero: DefaultGuestPolicy.
	GuestPolicy uint64
}

// Guest is one launched guest. It is safe for concurrent use.
type Guest struct {
	processor *Processor
	layout    measure.Layout
	report    snp.Report // what every report of this guest has in common
}

// Launch measures l and returns the guest's context, with a fresh report
// identifier.
func (p *Processor) Launch(l measure.Launch, policy Policy) (*Guest, error) {
	predicted, err := measure.Predict(l)
	if err != nil {
		return nil, fmt.Errorf("softtee: launch: %w", err)
	}
	family, model, stepping := uint8(cpuFamily), uint8(cpuModel), uint8(cpuStepping)
	firmware := snp.FirmwareVersion{Major: 1, Minor: 55, Build: 40}
	g := &Guest{processor: p, layout: predicted.Layout, report: snp.Report{
		Version: 3, Policy: policy.GuestPolicy, SigAlgo: snp.SigECDSAP384SHA384, PlatInfo: snp.PlatformSMT,
		Measurement: predicted.Digest, HostData: policy.HostData, ChipID: p.chipID,
		CurrentTCB: platformTCB(), ReportedTCB: platformTCB(), CommittedTCB: platformTCB(), LaunchTCB: platformTCB(),
		CPUIDFamily: &family, CPUIDModel: &model, CPUIDStepping: &stepping,
		Current: firmware, Committed: firmware,
	}}
	if policy.GuestPolicy == 0 {
		g.report.Policy = DefaultGuestPolicy
	}
	// No migration agent: all ones.
	for i := range g.report.ReportIDMA {
		g.report.ReportIDMA[i] = 0xff
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := io.ReadFull(p.rand, g.report.ReportID[:]); err != nil {
		return nil, fmt.Errorf("softtee: report identifier: %w", err)
	}
	return g, nil
}

// Measurement is the launch digest.
func (g *Guest) Measurement() [48]byte { return g.report.Measurement }

// Layout says how the kernel hashes came into the measurement.
func (g *Guest) Layout() measure.Layout { return g.layout }

// Report returns a signed report over reportData: 1184 bytes, version 3.
func (g *Guest) Report(reportData [64]byte) ([]byte, error) {
	r := g.report
	r.ReportData = reportData
	raw, err := r.Bytes()
	if err != nil {
		return nil, fmt.Errorf("softtee: %w", err)
	}
	sum := sha512.Sum384(raw[:snp.SignedSize])
	rr, ss, err := ecdsa.Sign(rand.Reader, g.processor.key, sum[:])
	if err != nil {
		return nil, fmt.Errorf("softtee: signing a report: %w", err)
	}
	putLittleEndian(r.Signature.R[:], rr)
	putLittleEndian(r.Signature.S[:], ss)
	return r.Bytes()
}

func putLittleEndian(b []byte, n *big.Int) {
	n.FillBytes(b)
	for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
		b[i], b[j] = b[j], b[i]
	}
}

// Serve answers the guest's requests on its port until the stream ends (nil),
// the guest sends something that is no request, or ctx ends. When ctx ends, rw
// is closed if it can be; a stream that cannot be closed keeps Serve until its
// next event.
func (g *Guest) Serve(ctx context.Context, rw io.ReadWriter) error { return serve(ctx, rw, g.answer) }

func serve(ctx context.Context, rw io.ReadWriter, answer func(io.ReadWriter) error) error {
	if c, ok := rw.(io.Closer); ok {
		stop := context.AfterFunc(ctx, func() { _ = c.Close() })
		defer stop()
	}
	for {
		err := answer(rw)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("softtee: serving reports: %w", err)
		}
	}
}

// answer serves one request; io.EOF means that there are no more.
func (g *Guest) answer(rw io.ReadWriter) error {
	q, err := softport.ReadRequest(rw)
	if err != nil {
		return err
	}
	if q.Format != softport.SNP {
		return softport.WriteRefusal(rw, q.ID, "this guest was launched as an SEV-SNP guest and has no TDX quotes")
	}
	raw, err := g.Report(q.ReportData)
	if err != nil {
		return errors.Join(err, softport.WriteRefusal(rw, q.ID, "the software TEE could not sign the report"))
	}
	return softport.WriteReport(rw, q.ID, raw, g.processor.certificates())
}
