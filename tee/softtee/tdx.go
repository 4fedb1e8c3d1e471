package softtee

import (
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/softtee/softport"
	"github.com/coffer-project/coffer/tee/tdx"
)

// DefaultAttributes are the TD attributes of a launch that names none.
const DefaultAttributes = tdx.AttributeSEPTVEDisable

// xfam are the extended features of every TD: x87, SSE, AVX, AVX-512 and PKU.
const xfam = 1<<0 | 1<<1 | 1<<2 | 1<<5 | 1<<6 | 1<<7 | 1<<9

// TDXPolicy is what the host fixes at the launch of a TD beside the measured
// content.
type TDXPolicy struct {
	// MRConfigID is the initdata digest, fitted.
	MRConfigID [48]byte
	// Attributes of the TD. Zero: DefaultAttributes.
	Attributes tdx.Attributes
	// QuoteVersion is 4 (TD report 1.0) or 5 (TD report 1.5). Zero: 4, which is
	// what hosts give today.
	QuoteVersion uint16
}

// TDXGuest is one launched TD. It is safe for concurrent use.
type TDXGuest struct {
	platform *platform
	layout   measure.Layout
	log      []byte

	mu    sync.Mutex // guards RTMR 3 in quote
	quote tdx.Quote  // what every quote of this TD has in common
}

// LaunchTDX measures l as [measure.TDX] says, in its LayoutSoftware where the
// firmware has no TDX metadata, and returns the TD. Every register must be
// predictable. The TD's event log is made here: nothing in a software guest
// measures anything but run-time events, which extend RTMR 3.
func (p *Processor) LaunchTDX(l measure.TDXLaunch, policy TDXPolicy) (*TDXGuest, error) {
	predicted, err := measure.TDX(l)
	if err != nil {
		return nil, fmt.Errorf("softtee: launch: %w", err)
	}
	for i, why := range predicted.Unknown {
		if why != "" {
			return nil, fmt.Errorf("softtee: launch: rtmr_%d: %s; take firmware without TDX metadata, such as SeaBIOS", i, why)
		}
	}
	g := &TDXGuest{platform: p.intel, layout: predicted.Layout, quote: tdx.Quote{
		Header:   dcapquote.Header{Version: policy.QuoteVersion, AttestationKeyType: dcapquote.KeyECDSAP256, TEEType: dcapquote.TEETypeTDX, VendorID: dcapquote.IntelQE()},
		BodyType: tdx.BodyTDReport10, BodySize: tdx.TDReport10Size,
		TEETCBSVN: teeSVN(), MRSEAM: sha512.Sum384([]byte("coffer software TEE: TDX module")),
		TDAttributes: policy.Attributes, XFAM: xfam, MRTD: predicted.MRTD, MRConfigID: policy.MRConfigID, RTMR: predicted.RTMR,
	}}
	q := &g.quote
	if q.TDAttributes == 0 {
		q.TDAttributes = DefaultAttributes
	}
	switch policy.QuoteVersion {
	case 0:
		q.Header.Version = 4
	case 4:
	case 5:
		svn := teeSVN()
		q.BodyType, q.BodySize, q.TEETCBSVN2, q.MRServiceTD = tdx.BodyTDReport15, tdx.TDReport15Size, &svn, new([48]byte)
	default:
		return nil, fmt.Errorf("softtee: launch: quote version: expected 4 or 5, got %d", policy.QuoteVersion)
	}
	if g.log, err = eventLog(predicted.Events); err != nil {
		return nil, fmt.Errorf("softtee: launch: %w", err)
	}
	return g, nil
}

// eventLog is the log of events, as guests put it into evidence: with SHA-384
// digests, RTMR n as register n+1, and an end mark.
func eventLog(events []measure.Event) ([]byte, error) {
	w, err := eventlog.NewWriter(eventlog.CCEL, []eventlog.Alg{eventlog.SHA384})
	if err != nil {
		return nil, err
	}
	for _, e := range events {
		digest := eventlog.Digest{Alg: eventlog.SHA384, Value: e.Digest[:]}
		if err := w.Append(e.Register+1, eventlog.EventType(e.Type), e.Data, []eventlog.Digest{digest}); err != nil {
			return nil, err
		}
	}
	const endMark = 8
	area, err := w.Area(len(w.Bytes()) + endMark)
	if err != nil {
		return nil, err
	}
	return eventlog.Evidence(area, nil)
}

// MRTD is the measurement of the firmware.
func (g *TDXGuest) MRTD() [48]byte { return g.quote.MRTD }

// RTMR are the runtime measurement registers.
func (g *TDXGuest) RTMR() [4][48]byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.quote.RTMR
}

// Extend extends RTMR 3 as TDG.MR.RTMR.EXTEND does, and returns its value.
func (g *TDXGuest) Extend(digest [48]byte) [48]byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := &g.quote.RTMR[3]
	*r = sha512.Sum384(slices.Concat(r[:], digest[:]))
	return *r
}

// Layout says how the firmware was measured.
func (g *TDXGuest) Layout() measure.Layout { return g.layout }

// EventLog is the CCEL that amounts to the registers, with its end mark. The
// caller must not change it.
func (g *TDXGuest) EventLog() []byte { return g.log }

// Quote returns a signed quote over reportData.
func (g *TDXGuest) Quote(reportData [64]byte) ([]byte, error) {
	g.mu.Lock()
	q := g.quote
	g.mu.Unlock()
	q.ReportData = reportData
	signed, err := q.SignedBytes()
	if err != nil {
		return nil, fmt.Errorf("softtee: %w", err)
	}
	raw, err := g.platform.machine.Quote(signed, q.Header.Version)
	if err != nil {
		return nil, fmt.Errorf("softtee: signing a quote: %w", err)
	}
	return raw, nil
}

// Serve is [Guest.Serve] for a TD.
func (g *TDXGuest) Serve(ctx context.Context, rw io.ReadWriter) error {
	return serve(ctx, rw, g.answer)
}

// answer serves one request; io.EOF means that there are no more.
func (g *TDXGuest) answer(rw io.ReadWriter) error {
	q, err := softport.ReadRequest(rw)
	if err != nil {
		return err
	}
	if q.Format != softport.TDX {
		return softport.WriteRefusal(rw, q.ID, "this guest was launched as a TD and has no SEV-SNP reports")
	}
	if q.Register {
		value := g.RTMR()[3]
		if q.Digest != nil {
			value = g.Extend(*q.Digest)
		}
		return softport.WriteRegister(rw, q.ID, value)
	}
	quote, err := g.Quote(q.ReportData)
	if err != nil {
		return errors.Join(err, softport.WriteRefusal(rw, q.ID, "the software TEE could not sign the quote"))
	}
	return softport.WriteQuote(rw, q.ID, quote, g.log)
}
