package dcapquote

import (
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
)

// Inspect decodes a signature section for a reader, without trust: what is in
// it, and what is odd about it. Bytes behind the section are odd only.
func Inspect(section []byte, version uint16) (fields map[string]any, odd []string) {
	if len(section) >= 4 {
		end := 4 + uint64(binary.LittleEndian.Uint32(section))
		if n := uint64(len(section)); n > end {
			odd = append(odd, fmt.Sprintf("%d bytes behind the quote", n-end))
			section = section[:end]
		}
	}
	s, err := ParseSignature(section, version)
	if err != nil {
		return nil, append(odd, err.Error())
	}
	fields = map[string]any{
		"signature":       hex.EncodeToString(s.Quote[:]),
		"attestation_key": hex.EncodeToString(s.AttestationKey[:]),
		"qe_auth_data":    hex.EncodeToString(s.QEAuthData),
	}
	if qe, err := ParseEnclaveReport(s.QEReport); err == nil {
		fields["qe_report"] = qe.Fields()
		odd = append(odd, qe.odd("quoting enclave")...)
	}
	certs, more := inspectChain(s.Chain)
	fields["certificates"] = certs
	return fields, append(odd, more...)
}

// inspectChain describes at most ten certificates.
func inspectChain(text []byte) (out []any, odd []string) {
	const most = 10
	for range most {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		text = rest
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			odd = append(odd, fmt.Sprintf("certificate %d: %v", len(out), err))
			continue
		}
		fields := map[string]any{
			"subject": c.Subject.String(), "issuer": c.Issuer.String(), "serial_number": fmt.Sprintf("%x", c.SerialNumber),
			"not_before": c.NotBefore.UTC().String(), "not_after": c.NotAfter.UTC().String(),
		}
		if p, err := ParsePCK(c); err == nil {
			fields["pck"] = p.fields()
		} else if len(out) == 0 {
			odd = append(odd, err.Error())
		}
		out = append(out, fields)
	}
	if len(out) != 3 {
		odd = append(odd, fmt.Sprintf("expected a chain of 3 certificates, got %d", len(out)))
	}
	return out, odd
}

func (p *PCK) fields() map[string]any {
	out := map[string]any{
		"ppid": hex.EncodeToString(p.PPID[:]), "fmspc": hex.EncodeToString(p.FMSPC[:]), "pce_id": hex.EncodeToString(p.PCEID[:]),
		"cpu_svn": hex.EncodeToString(p.CPUSVN[:]), "components": hex.EncodeToString(p.Components[:]), "pce_svn": int(p.PCESVN), "sgx_type": p.SGXType.String(),
	}
	if p.PlatformInstanceID != nil {
		out["platform_instance_id"] = hex.EncodeToString(p.PlatformInstanceID[:])
	}
	if c := p.Configuration; c != nil {
		out["configuration"] = map[string]any{"dynamic_platform": c.DynamicPlatform, "cached_keys": c.CachedKeys, "smt_enabled": c.SMTEnabled}
	}
	return out
}

// Fields describes a header for a reader.
func (h Header) Fields() map[string]any {
	return map[string]any{
		"version": int(h.Version), "att_key_type": int(h.AttestationKeyType), "tee_type": fmt.Sprintf("%#x", h.TEEType),
		"reserved": hex.EncodeToString(h.Reserved[:]), "vendor_id": hex.EncodeToString(h.VendorID[:]), "user_data": hex.EncodeToString(h.UserData[:]),
	}
}

// Fields describes a report for a reader.
func (r *EnclaveReport) Fields() map[string]any {
	return map[string]any{
		"cpu_svn": hex.EncodeToString(r.CPUSVN[:]), "misc_select": fmt.Sprintf("%#x", r.MiscSelect), "isv_ext_prod_id": hex.EncodeToString(r.ISVExtProdID[:]),
		"attributes.flags": fmt.Sprintf("%#x", r.Flags), "attributes.xfrm": fmt.Sprintf("%#x", r.XFRM),
		"mr_enclave": hex.EncodeToString(r.MREnclave[:]), "mr_signer": hex.EncodeToString(r.MRSigner[:]), "config_id": hex.EncodeToString(r.ConfigID[:]),
		"isv_prod_id": int(r.ISVProdID), "isv_svn": int(r.ISVSVN), "config_svn": int(r.ConfigSVN), "isv_family_id": hex.EncodeToString(r.ISVFamilyID[:]),
		"report_data": hex.EncodeToString(r.ReportData[:]),
	}
}

func (r *EnclaveReport) odd(whose string) []string {
	var out []string
	if r.Flags&AttributeDebug != 0 {
		out = append(out, whose+": debug attribute")
	}
	if r.Flags&AttributeInit == 0 {
		out = append(out, whose+": not initialised")
	}
	if !r.ReservedZero() {
		out = append(out, whose+": reserved bytes that are not zero")
	}
	return out
}

// Odd says what a verifier would refuse in the report of an application enclave.
func (r *EnclaveReport) Odd() []string { return r.odd("enclave") }
