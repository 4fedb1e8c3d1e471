package dcap

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/internal/memo"
)

// documents are what is known about a platform. Any may be nil.
type documents struct {
	tcb     *TCBInfo
	qe      *QEIdentity
	pckCRL  *crl
	rootCRL *crl
}

// forever is the validity of a parsed document: its dates are judged each
// time, its bytes are parsed once.
func forever() (from, to time.Time) { return time.Time{}, time.Unix(1<<40, 0) }

// gather gets the documents about a platform, and records what is lacking.
func (v *Verifier) gather(ctx context.Context, l *checks.List, e *endorsement) documents {
	var d documents
	source := e.root.source(v.collateral)
	item := fmt.Sprintf("TCB info of %s platform family %s", v.kind, FMSPCText(e.pck.FMSPC))
	d.tcb = get(v, l, "tcb_info", item, source, v.tcbInfos, func(c Collateral) (Signed, error) { return c.TCBInfo(ctx, v.kind, e.pck.FMSPC) }, func(s Signed) (*TCBInfo, error) { return ParseTCBInfo(s, v.roots) })
	item = fmt.Sprintf("identity of the %s quoting enclave", v.kind)
	d.qe = get(v, l, "qe_identity", item, source, v.identities, func(c Collateral) (Signed, error) { return c.QEIdentity(ctx, v.kind) }, func(s Signed) (*QEIdentity, error) { return ParseQEIdentity(s, v.roots) })
	item = fmt.Sprintf("revocation list of the PCK %s CA", e.ca)
	d.pckCRL = get(v, l, "pck_crl", item, source, v.crls, func(c Collateral) (Signed, error) { return c.PCKCRL(ctx, e.ca) }, func(s Signed) (*crl, error) { return parsePCKCRL(s, e.ca, v.roots) })
	item = "revocation list of the root " + quoteName(e.root.Certificate.Subject)
	d.rootCRL = get(v, l, "root_ca_crl", item, source, v.crls, func(c Collateral) (Signed, error) {
		der, err := c.RootCRL(ctx)
		return Signed{Body: der}, err
	}, func(s Signed) (*crl, error) { return parseRootCRL(s.Body, v.roots) })
	return d
}

// get fetches one document and parses it, unless the very bytes were parsed
// before. Nil: there is none, and l says so.
func get[T any](v *Verifier, l *checks.List, field, item string, source Collateral, known *memo.Memo[*T], fetch func(Collateral) (Signed, error), parse func(Signed) (*T, error)) *T {
	f := tee.Failure{Check: v.check("collateral"), Field: field}
	if source == nil {
		l.Missing(f, &tee.CollateralError{Item: item, Reason: tee.CollateralMissing})
		return nil
	}
	s, err := fetch(source)
	if err != nil {
		l.Missing(f, err)
		return nil
	}
	key := memo.KeyOf([]byte(field), s.Body, s.IssuerChain)
	now := v.now()
	if t, ok := known.Get(key, now); ok {
		return t
	}
	t, err := parse(s)
	if err != nil {
		l.Missing(f, &tee.CollateralError{Item: item, Reason: tee.CollateralInvalid, Err: err})
		return nil
	}
	from, to := forever()
	known.Put(key, from, to, t)
	return t
}

// span is the validity of one document.
type span struct {
	field    string
	from, to time.Time
}

// spans are the validities of everything that a verdict rests on.
func (d documents) spans(e *endorsement) []span {
	out := certSpans(nil, "certification_data", e.certs)
	if d.tcb != nil {
		out = certSpans(append(out, span{"tcb_info", d.tcb.IssueDate, d.tcb.NextUpdate}), "tcb_info.issuer_chain", d.tcb.IssuerChain)
	}
	if d.qe != nil {
		out = certSpans(append(out, span{"qe_identity", d.qe.IssueDate, d.qe.NextUpdate}), "qe_identity.issuer_chain", d.qe.IssuerChain)
	}
	if d.pckCRL != nil {
		out = certSpans(append(out, span{"pck_crl", d.pckCRL.list.ThisUpdate, d.pckCRL.list.NextUpdate}), "pck_crl.issuer_chain", d.pckCRL.issuers)
	}
	if d.rootCRL != nil {
		out = append(out, span{"root_ca_crl", d.rootCRL.list.ThisUpdate, d.rootCRL.list.NextUpdate})
	}
	return out
}

func certSpans(out []span, field string, certs []*x509.Certificate) []span {
	for _, c := range certs {
		out = append(out, span{field, c.NotBefore, c.NotAfter})
	}
	return out
}

func (d documents) complete() bool {
	return d.tcb != nil && d.qe != nil && d.pckCRL != nil && d.rootCRL != nil
}
