package collateral

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/azure"
	"github.com/coffer-project/coffer/tee/csv"
	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
	"github.com/coffer-project/coffer/tee/internal/pemchain"
	"github.com/coffer-project/coffer/tee/sgx"
	"github.com/coffer-project/coffer/tee/snp"
	"github.com/coffer-project/coffer/tee/tdx"
)

// ErrGeneration is wrapped where SNP evidence does not say of which processor
// generation the chip is: reports of version 2 without their certificate.
var ErrGeneration = errors.New("the report does not say which processor generation it is of")

// Needs lists what the verification of evidence may ask for. evidence is raw (an
// SNP report, with or without its certificate table; a quote) or evidence JSON;
// nothing of it is verified. generation is that of SNP reports that do not say.
func Needs(name tee.Name, evidence []byte, generation snp.Generation, u Update) ([]Item, error) {
	isJSON := strings.HasPrefix(string(bytes.TrimSpace(evidence[:min(len(evidence), 64)])), "{")
	switch name {
	case tee.SNP:
		e, err := parse(evidence, isJSON, snp.ParseEvidence, snp.ParseRaw)
		if err != nil {
			return nil, err
		}
		return snpNeeds(e, generation)
	case tee.TDX:
		raw := evidence
		if isJSON {
			e, err := tdx.ParseEvidence(evidence)
			if err != nil {
				return nil, err
			}
			raw = e.Quote
		}
		q, err := tdx.ParseQuote(tdx.Trim(raw))
		if err != nil {
			return nil, err
		}
		return intelNeeds("tdx", q.Signature, u)
	case tee.SGX:
		raw := evidence
		if isJSON {
			e, err := sgx.ParseEvidence(evidence)
			if err != nil {
				return nil, err
			}
			raw = e.Quote
		}
		q, err := sgx.ParseQuote(raw)
		if err != nil {
			return nil, err
		}
		return intelNeeds("sgx", q.Signature, u)
	case tee.AzureSNPVTPM, tee.AzureTDXVTPM:
		return azureNeeds(name, evidence, generation, u)
	case tee.CSV:
		e, err := csv.ParseEvidence(evidence)
		if err != nil {
			return nil, err
		}
		serial, err := e.SerialNumber()
		if err != nil {
			return nil, err
		}
		i, err := HSKCEKItem(serial)
		return []Item{i}, err
	}
	return nil, fmt.Errorf("collateral: evidence of %s: expected snp, tdx, sgx, az-snp-vtpm, az-tdx-vtpm or csv", name)
}

func parse[T any, J ~[]byte](evidence []byte, isJSON bool, decode func(J) (T, error), raw func([]byte) (T, error)) (T, error) {
	if isJSON {
		return decode(evidence)
	}
	return raw(evidence)
}

// azureNeeds is that of the report or quote that the paravisor's report holds.
func azureNeeds(name tee.Name, evidence []byte, g snp.Generation, u Update) ([]Item, error) {
	e, err := azure.ParseEvidence(name, evidence)
	if err != nil {
		return nil, err
	}
	if name == tee.AzureTDXVTPM {
		q, err := tdx.ParseQuote(tdx.Trim(e.TDQuote))
		if err != nil {
			return nil, err
		}
		return intelNeeds("tdx", q.Signature, u)
	}
	r, err := azure.ParseReport(e.HCLReport)
	if err != nil {
		return nil, err
	}
	vcek := e.VCEK
	if block, _ := pem.Decode(e.VCEKPEM); block != nil {
		vcek = block.Bytes
	}
	inner, err := snp.NewEvidence(r.Hardware[:snp.ReportSize], []snp.Certificate{{Type: snp.CertVCEK, Data: vcek}})
	if err != nil {
		return nil, err
	}
	return snpNeeds(inner, g)
}

func snpNeeds(e *snp.Evidence, g snp.Generation) ([]Item, error) {
	r := &e.AttestationReport
	if said := r.Generation(); said != "" {
		g = said
	}
	signer := r.Signer()
	if g == "" {
		g = generationOf(e)
	}
	if g == "" {
		return nil, fmt.Errorf("collateral: SNP report of version %d: %w", r.Version, ErrGeneration)
	}
	list, err := AMDItem(AMDCRL, g, signer)
	if err != nil {
		return nil, err
	}
	if signer != snp.SignerVCEK {
		return []Item{list}, nil // a VLEK comes with the evidence
	}
	i, err := VCEKItem(g, r.ChipID[:], r.ReportedTCB)
	return []Item{i, list}, err
}

// generationOf is that of the certificate in the evidence.
func generationOf(e *snp.Evidence) snp.Generation {
	c, ok := e.Certificate(snp.CertVCEK)
	if !ok {
		return ""
	}
	seen, err := recognize("", c.Data)
	if err != nil || len(seen.candidates) != 1 || seen.candidates[0].item.Kind != VCEK {
		return ""
	}
	g, _, _, err := seen.candidates[0].item.vcek()
	if err != nil {
		return ""
	}
	return g
}

func intelNeeds(kind string, s *dcapquote.Signature, u Update) ([]Item, error) {
	certs, err := pemchain.Parse(s.Chain)
	if err != nil {
		return nil, err
	}
	pck, err := dcapquote.ParsePCK(certs[0])
	if err != nil {
		return nil, err
	}
	ca := "processor"
	if strings.Contains(certs[0].Issuer.CommonName, "Platform") {
		ca = "platform"
	}
	return IntelNeeds(kind, pck.FMSPC, []string{ca}, u)
}

// IntelNeeds lists what quotes of a platform family need; kind is "sgx" or
// "tdx", cas are of "platform" and "processor".
func IntelNeeds(kind string, fmspc [6]byte, cas []string, u Update) ([]Item, error) {
	info, err := TCBInfoItem(kind, fmspc, u)
	if err != nil {
		return nil, err
	}
	identity, err := QEIdentityItem(kind, u)
	if err != nil {
		return nil, err
	}
	out := []Item{info, identity}
	for _, ca := range cas {
		list, err := PCKCRLItem(ca)
		if err != nil {
			return nil, err
		}
		out = append(out, list)
	}
	return append(out, RootCRLItem()), nil
}
