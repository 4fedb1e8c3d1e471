package snp

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/coffer-project/coffer/tee"
)

// maxInspected is the greatest report version that is taken for one when
// nothing else is known about the bytes.
const maxInspected = 0xFF

// Inspect decodes raw evidence or evidence JSON without trust, leniently, and
// says what is odd about it. Its fields are those of [Report.Fields], and
// "certificates": a list of objects with "type", "bytes", "sha256" and, where
// it parses, "subject", "issuer", "not_before" and "not_after" (RFC 3339). The
// error says that data is no SNP evidence at all.
func Inspect(data []byte) (*tee.Inspection, error) {
	if len(data) > MaxEvidence {
		return nil, fmt.Errorf("snp: expected at most %d bytes, got %d", MaxEvidence, len(data))
	}
	var r *Report
	var certs []Certificate
	var odd []string
	var err error
	form := "raw"
	if trimmed := bytes.TrimSpace(data); len(trimmed) > 0 && trimmed[0] == '{' {
		form = "JSON"
		r, certs, odd, err = looseJSON(trimmed)
	} else {
		r, certs, odd, err = looseRaw(data)
	}
	if err != nil {
		return nil, err
	}
	fields := r.Fields()
	list := make([]any, len(certs))
	for i, c := range certs {
		list[i] = inspectCertificate(c)
	}
	fields["certificates"] = list
	return &tee.Inspection{
		TEE: tee.SNP, Format: fmt.Sprintf("attestation report, version %d, %s", r.Version, form),
		Fields: fields, Odd: append(odd, r.oddities(certs)...),
	}, nil
}

func looseRaw(data []byte) (r *Report, certs []Certificate, odd []string, err error) {
	if len(data) < ReportSize {
		return nil, nil, nil, fmt.Errorf("snp: report: expected %d bytes, got %d", ReportSize, len(data))
	}
	report, table := data[:ReportSize], data[ReportSize:]
	r = decode(report)
	if r.Version == 0 || r.Version > maxInspected {
		return nil, nil, nil, fmt.Errorf("snp: report: version: expected %d to %d, got %d", MinVersion, MaxVersion, r.Version)
	}
	if _, err := DecodeReport(report); err != nil {
		odd = append(odd, err.Error())
	}
	if len(table) > 0 {
		if certs, err = ParseCertTable(table); err != nil {
			odd = append(odd, fmt.Sprintf("%d bytes after the report: %v", len(table), err))
		} else if len(certs) == 0 {
			odd = append(odd, fmt.Sprintf("%d bytes after the report are an empty certificate table", len(table)))
		}
	}
	return r, certs, odd, nil
}

func looseJSON(data []byte) (r *Report, certs []Certificate, odd []string, err error) {
	e, err := ParseEvidence(data)
	if err == nil {
		return &e.AttestationReport, e.CertChain, nil, nil
	}
	odd = []string{err.Error()}
	var loose struct {
		Report *Report           `json:"attestation_report"`
		Chain  []json.RawMessage `json:"cert_chain"`
	}
	if err := json.Unmarshal(data, &loose); err != nil {
		if _, syntax := errors.AsType[*json.SyntaxError](err); syntax || loose.Report == nil {
			return nil, nil, nil, fmt.Errorf("snp: evidence: %w", err)
		}
	}
	if loose.Report == nil {
		return nil, nil, nil, errors.New("snp: evidence: attestation_report: expected an object, got none")
	}
	for i, text := range loose.Chain {
		if i == MaxCertificates {
			break
		}
		var c Certificate
		if err := json.Unmarshal(text, &c); err != nil {
			odd = append(odd, fmt.Sprintf("cert_chain[%d]: %v", i, err))
			continue
		}
		certs = append(certs, c)
	}
	return loose.Report, certs, odd, nil
}

func inspectCertificate(c Certificate) map[string]any {
	sum := sha256.Sum256(c.Data)
	out := map[string]any{"type": string(c.Type), "bytes": len(c.Data), "sha256": hex.EncodeToString(sum[:])}
	if c.Type == CertOther {
		out["guid"] = c.GUID
	}
	if parsed, err := x509.ParseCertificate(c.Data); err == nil {
		out["subject"], out["issuer"] = parsed.Subject.String(), parsed.Issuer.String()
		out["not_before"] = parsed.NotBefore.UTC().Format(time.RFC3339)
		out["not_after"] = parsed.NotAfter.UTC().Format(time.RFC3339)
	}
	return out
}

// oddities are remarks on what the report says.
func (r *Report) oddities(certs []Certificate) []string {
	var out []string
	remark := func(when bool, format string, args ...any) {
		if when {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	for _, p := range r.BitProblems() {
		remark(true, "%s: expected %s, got %s", p.Field, p.Expected, p.Got)
	}
	remark(r.Policy&PolicyDebug != 0, "policy: the host may read and write the guest's memory (debug)")
	remark(r.Policy&PolicyMigrateMA != 0, "policy: a migration agent may be attached")
	remark(r.VMPL != 0, "vmpl: the report was asked for at level %d, not 0", r.VMPL)
	remark(r.SigAlgo != SigECDSAP384SHA384, "sig_algo: expected %d (ECDSA P-384 with SHA-384), got %d", SigECDSAP384SHA384, r.SigAlgo)
	remark(r.Signer() != SignerVCEK && r.Signer() != SignerVLEK, "key_info: the signing key is %s", r.Signer())
	remark(r.Signature == Signature{}, "signature: all zeros")
	remark(r.ChipID == [64]byte{}, "chip_id: masked by the host")
	remark(r.Version >= 3 && r.Generation() == "", "cpuid_fam_id, cpuid_mod_id: a processor generation that is not known")
	remark(len(certs) == 0, "cert_chain: no certificates; a verifier has to find the %s certificate elsewhere", r.Signer())
	return out
}
