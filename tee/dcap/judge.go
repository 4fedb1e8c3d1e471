package dcap

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/checks"
)

// judge holds a platform against Intel's documents.
func (v *Verifier) judge(ctx context.Context, l *checks.List, q Quote, e *endorsement, p *Platform, now time.Time) {
	d := v.gather(ctx, l, e)
	v.checkIssuers(l, &d, e)
	spans := d.spans(e)
	expired := v.checkDates(l, spans, now)
	v.checkRevocation(l, d, e)
	dateClaims(p.Claims, d, spans, expired)
	if d.qe == nil && !e.root.Development {
		l.Fail(checkIntelQE(v.kind, e.qe)...)
	}
	if d.tcb == nil || d.qe == nil {
		return
	}
	l.Fail(d.qe.check(string(v.kind), e.qe)...)
	level := levelOf(d.qe.Levels, e.qe.ISVSVN)
	if level == nil {
		l.Fail(tee.Failure{
			Check: v.check("qe_identity"), Field: "qe_report.isv_svn", Expected: fmt.Sprintf("at least %d", d.qe.Levels[len(d.qe.Levels)-1].ISVSVN), Got: fmt.Sprint(e.qe.ISVSVN),
			Help: "Intel lists no such version of the quoting enclave: update the host's DCAP software",
		})
		return
	}
	if q.TD != nil {
		p.ModuleJudged = true
		if !v.checkModule(l, d.tcb, q.TD) {
			return
		}
	}
	v.checkTCB(l, d.tcb, q.TD, e, level, p.Claims)
}

// checkIssuers drops documents that are not about this platform, and records
// them: a document that was issued for another one says nothing about this.
func (v *Verifier) checkIssuers(l *checks.List, d *documents, e *endorsement) {
	differ := func(field, want, got string) {
		l.Fail(tee.Failure{
			Check: v.check("collateral"), Field: field, Expected: want, Got: got,
			Help: "the collateral belongs to another platform: look at what its source serves",
		})
	}
	rootOf := func(field string, r *Root) bool {
		if r != e.root {
			differ(field+".issuer_chain", fmt.Sprintf("the root %q, as the PCK certificate's", e.root.Name), fmt.Sprintf("the root %q", r.Name))
			return false
		}
		return true
	}
	if t := d.tcb; t != nil {
		ok := rootOf("tcb_info", t.Root)
		if want := strings.ToUpper(string(v.kind)); t.ID != want {
			differ("tcb_info.id", want, t.ID)
			ok = false
		}
		if t.FMSPC != e.pck.FMSPC {
			differ("tcb_info.fmspc", FMSPCText(e.pck.FMSPC), FMSPCText(t.FMSPC))
			ok = false
		}
		if t.PCEID != e.pck.PCEID {
			differ("tcb_info.pceId", upperHex(e.pck.PCEID[:]), upperHex(t.PCEID[:]))
			ok = false
		}
		if !ok {
			d.tcb = nil
		}
	}
	if i := d.qe; i != nil {
		ok := rootOf("qe_identity", i.Root)
		if want := map[Kind]string{SGX: "QE", TDX: "TD_QE"}[v.kind]; i.ID != want {
			differ("qe_identity.id", want, i.ID)
			ok = false
		}
		if !ok {
			d.qe = nil
		}
	}
	if c := d.pckCRL; c != nil {
		if !rootOf("pck_crl", c.root) {
			d.pckCRL = nil
		} else if !sameKey(c.issuers[0], e.certs[1]) {
			differ("pck_crl.issuer_chain", "the key of the PCK certificate's issuer", "another key")
			d.pckCRL = nil
		}
	}
	if c := d.rootCRL; c != nil && !rootOf("root_ca_crl", c.root) {
		d.rootCRL = nil
	}
}

func sameKey(a, b *x509.Certificate) bool {
	return string(a.RawSubjectPublicKeyInfo) == string(b.RawSubjectPublicKeyInfo)
}

// checkDates reports whether anything has expired. Certificates of the quote
// itself were judged before.
func (v *Verifier) checkDates(l *checks.List, spans []span, now time.Time) bool {
	expired := false
	for _, s := range spans {
		if now.After(s.to) {
			expired = true
		}
		if s.field == "certification_data" || !now.Before(s.from) && !now.After(s.to) {
			continue
		}
		l.FailUnless(v.allowStale, tee.Failure{
			Check: v.check("collateral"), Field: s.field, Expected: "valid at " + now.UTC().Format(time.RFC3339),
			Got:  "valid from " + s.from.UTC().Format(time.RFC3339) + " to " + s.to.UTC().Format(time.RFC3339),
			Help: "fetch the collateral anew, and check the clock",
		})
	}
	return expired
}

// checkRevocation looks every certificate up that the verdict rests on.
func (v *Verifier) checkRevocation(l *checks.List, d documents, e *endorsement) {
	look := func(c *crl, field string, cert *x509.Certificate) {
		if c == nil {
			return
		}
		if entry := c.entry(cert.SerialNumber); entry != nil {
			l.Fail(tee.Failure{
				Check: v.check("revocation"), Field: field, Expected: "a certificate that is not revoked",
				Got:  fmt.Sprintf("%s, serial number %x, revoked at %s", quoteName(cert.Subject), cert.SerialNumber, entry.RevocationTime.UTC().Format(time.RFC3339)),
				Help: "its issuer no longer vouches for it: take the platform out of service",
			})
		}
	}
	look(d.pckCRL, "certification_data.pck", e.certs[0])
	look(d.rootCRL, "certification_data.intermediate", e.certs[1])
	if d.tcb != nil {
		look(d.rootCRL, "tcb_info.issuer_chain", d.tcb.IssuerChain[0])
	}
	if d.qe != nil {
		look(d.rootCRL, "qe_identity.issuer_chain", d.qe.IssuerChain[0])
	}
	if d.pckCRL != nil {
		look(d.rootCRL, "pck_crl.issuer_chain", d.pckCRL.issuers[0])
	}
}

// checkModule holds the TDX module's signer and attributes against Intel's.
func (v *Verifier) checkModule(l *checks.List, t *TCBInfo, td *TD) bool {
	m := t.module(td.TCBSVN[1])
	if m == nil {
		l.Fail(tee.Failure{
			Check: v.check("module"), Field: "tcb_svn", Expected: "a TDX module that Intel lists for this platform", Got: fmt.Sprintf("version %d", td.TCBSVN[1]),
			Help: "Intel does not know this TDX module, or the TCB info is older than it",
		})
		return false
	}
	ok := true
	differ := func(field string, want, got []byte) {
		ok = false
		l.Fail(tee.Failure{Check: v.check("module"), Field: field, Expected: fmt.Sprintf("%x", want), Got: fmt.Sprintf("%x", got), Help: "this is not Intel's TDX module"})
	}
	if td.MRSignerSEAM != m.MRSigner {
		differ("mrsigner_seam", m.MRSigner[:], td.MRSignerSEAM[:])
	}
	if masked := mask(td.SEAMAttributes[:], m.AttributesMask[:]); string(masked) != string(m.Attributes[:]) {
		differ("seam_attributes", m.Attributes[:], masked)
	}
	return ok
}

// checkTCB evaluates the patch level.
func (v *Verifier) checkTCB(l *checks.List, t *TCBInfo, td *TD, e *endorsement, qe *EnclaveLevel, claims map[string]any) {
	var svn *[16]byte
	if td != nil {
		svn = &td.TCBSVN
	}
	verdict, err := t.Evaluate(e.pck, svn, qe)
	if err == nil && td != nil && td.TCBSVN2 != nil {
		var current Verdict
		if current, err = t.Evaluate(e.pck, td.TCBSVN2, qe); err == nil {
			verdict.Status = relaunch(verdict.Status, current.Status)
			if current.Status == Revoked {
				verdict.Status = Revoked
			}
			currentClaims(claims, current)
		}
	}
	if err != nil {
		l.Fail(tee.Failure{
			Check: v.check("tcb"), Field: "tcb_status", Expected: "a patch level that Intel lists", Got: err.Error(),
			Help: "update the host's microcode, firmware and TDX module",
		})
		return
	}
	verdictClaims(claims, verdict)
	f := tee.Failure{
		Check: v.check("tcb"), Field: "tcb_status", Expected: string(UpToDate), Got: string(verdict.Status),
		Help: "the platform's firmware or its quoting enclave needs an update or another configuration",
	}
	if len(verdict.Advisories) > 0 {
		f.Help += "; see " + strings.Join(verdict.Advisories, ", ")
	}
	switch verdict.Status {
	case UpToDate:
	case Revoked:
		l.Fail(f)
	default:
		l.Warn(f)
	}
}
