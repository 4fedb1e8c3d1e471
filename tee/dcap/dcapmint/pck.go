package dcapmint

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"

	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
)

// arc is 1.2.840.113741.1.13.1 with what follows.
func arc(tail ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}, tail...)
}

// element is SEQUENCE { OID, value }.
type element struct {
	ID    asn1.ObjectIdentifier
	Value any
}

// PCKExtension encodes the SGX extension of a PCK certificate.
func PCKExtension(p *dcapquote.PCK) (pkix.Extension, error) {
	var tcb []element
	for i, svn := range p.Components {
		tcb = append(tcb, element{arc(2, i+1), int(svn)})
	}
	tcb = append(tcb, element{arc(2, 17), int(p.PCESVN)}, element{arc(2, 18), p.CPUSVN[:]})
	list := []element{
		{arc(1), p.PPID[:]},
		{arc(2), tcb},
		{arc(3), p.PCEID[:]},
		{arc(4), p.FMSPC[:]},
		{arc(5), asn1.Enumerated(p.SGXType)},
	}
	if p.PlatformInstanceID != nil {
		list = append(list, element{arc(6), p.PlatformInstanceID[:]})
	}
	if c := p.Configuration; c != nil {
		list = append(list, element{arc(7), []element{{arc(7, 1), c.DynamicPlatform}, {arc(7, 2), c.CachedKeys}, {arc(7, 3), c.SMTEnabled}}})
	}
	der, err := asn1.Marshal(list)
	if err != nil {
		return pkix.Extension{}, fmt.Errorf("dcapmint: SGX extension: %w", err)
	}
	return pkix.Extension{Id: arc(), Value: der}, nil
}
