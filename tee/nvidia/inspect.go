package nvidia

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/tee"
)

const pemStart = "-----BEGIN CERTIFICATE-----"

// FromRaw makes KBS evidence of what tools write to files: a report, in binary
// or in hex, with the device's certificate chain in PEM after it; or NVIDIA's own
// JSON list of devices. The generation is read from the certificates.
func FromRaw(raw []byte) (json.RawMessage, error) {
	if len(raw) > MaxEvidence {
		return nil, fmt.Errorf("nvidia: expected at most %d bytes, got %d", MaxEvidence, len(raw))
	}
	if first := bytes.TrimSpace(raw); len(first) > 0 && first[0] == '[' {
		e, err := parseList(raw)
		if err != nil {
			return nil, fmt.Errorf("nvidia: list of devices: %w", err)
		}
		return e.JSON()
	}
	report, chain, err := split(raw)
	if err != nil {
		return nil, fmt.Errorf("nvidia: %w", err)
	}
	if chain == nil {
		return nil, errors.New("nvidia: expected the device's certificate chain in PEM after the report, got a report alone")
	}
	if _, err := ParseReport(report); err != nil {
		return nil, fmt.Errorf("nvidia: %w", err)
	}
	d := Device{Report: report, Chain: chain}
	certs, err := d.Certificates()
	if err != nil {
		return nil, fmt.Errorf("nvidia: %w", err)
	}
	id, err := IdentityOf(certs[0])
	if err != nil {
		return nil, fmt.Errorf("nvidia: %w", err)
	}
	if d.Arch, err = id.Arch(); err != nil {
		return nil, fmt.Errorf("nvidia: %w", err)
	}
	return (&Evidence{Devices: []Device{d}}).JSON()
}

// split takes a report and the certificates after it apart.
func split(raw []byte) (report, chain []byte, err error) {
	report = raw
	if i := bytes.Index(raw, []byte(pemStart)); i >= 0 {
		report, chain = raw[:i], raw[i:]
	}
	if len(report) < len(hexStart) || (!bytes.EqualFold(report[:len(hexStart)], []byte(hexStart)) && (report[0] != spdmVersion || report[1] != getMeasurements)) {
		return nil, nil, errors.New("expected a report that begins with an SPDM 1.1 measurement request, in binary or hex, got something else")
	}
	if report[0] == spdmVersion {
		return report, chain, nil
	}
	report, err = decodeReport(string(bytes.TrimSpace(report)))
	return report, chain, err
}

// Inspect decodes evidence without trusting it: the KBS form, NVIDIA's list of
// devices, or a report with or without certificates after it.
func Inspect(data []byte) (*tee.Inspection, error) {
	var e *Evidence
	var err error
	out := &tee.Inspection{TEE: tee.NVIDIA, Format: "SPDM 1.1 measurement report"}
	switch first := bytes.TrimSpace(data); {
	case len(first) > 0 && first[0] == '{':
		out.Format = "evidence JSON"
		e, err = ParseEvidence(data)
	case len(first) > 0 && first[0] == '[':
		out.Format = "NVIDIA's list of devices"
		e, err = parseList(data)
	default:
		var d Device
		d.Report, d.Chain, err = split(data)
		e = &Evidence{Devices: []Device{d}}
	}
	if err != nil {
		return nil, fmt.Errorf("nvidia: %w", err)
	}
	devices := make([]any, len(e.Devices))
	for i := range e.Devices {
		fields, odd := e.Devices[i].inspect()
		devices[i] = fields
		for _, o := range odd {
			out.Odd = append(out.Odd, fmt.Sprintf("device %d: %s", i, o))
		}
	}
	out.Fields = map[string]any{"devices": devices}
	return out, nil
}

func (d *Device) inspect() (map[string]any, []string) {
	out := map[string]any{}
	var odd []string
	if d.Arch != "" {
		out["arch"] = string(d.Arch)
	}
	if d.UUID != "" {
		out["uuid"] = d.UUID
	}
	if p, err := ParseReport(d.Report); err != nil {
		odd = append(odd, err.Error())
	} else {
		out["nonce"], out["device_nonce"] = hex.EncodeToString(p.Nonce[:]), hex.EncodeToString(p.DeviceNonce[:])
		out["measurements"], out["config"], out["signature"] = p.Values(), p.Config(), hex.EncodeToString(p.Signature)
		odd = append(odd, p.oddities(d)...)
	}
	if d.Chain == nil {
		return out, append(odd, "there are no certificates")
	}
	certs, err := d.Certificates()
	if err != nil {
		return out, append(odd, err.Error())
	}
	out["certificates"] = describe(certs)
	id, err := IdentityOf(certs[0])
	if err != nil {
		return out, append(odd, err.Error())
	}
	out["chip"], out["serial"] = id.Chip, id.Serial
	if arch, err := id.Arch(); err != nil {
		odd = append(odd, err.Error())
	} else if d.Arch != "" && arch != d.Arch {
		odd = append(odd, fmt.Sprintf("arch says %s, the certificate is of a %s", d.Arch, id.Chip))
	}
	return out, odd
}

// Contradictions are what is said beside the report and the report does not say:
// the name of the field, what the report says, what is said beside it.
func (d *Device) Contradictions(p *Report) [][3]string {
	var out [][3]string
	for _, c := range [][3]string{
		{"nonce", hex.EncodeToString(p.Nonce[:]), strings.TrimPrefix(d.Nonce, "0x")},
		{"driver_version", p.Text(FieldDriverVersion), d.DriverVersion},
		{"vbios_version", p.VBIOSVersion(), d.VBIOSVersion},
	} {
		if c[2] != "" && !strings.EqualFold(c[1], c[2]) {
			out = append(out, c)
		}
	}
	return out
}

func (p *Report) oddities(d *Device) []string {
	var odd []string
	for _, f := range p.Fields {
		if _, _, known := f.Type.layout(); !known {
			odd = append(odd, fmt.Sprintf("opaque data: a field of the unknown type %d", f.Type))
		}
	}
	for _, c := range d.Contradictions(p) {
		odd = append(odd, fmt.Sprintf("%s: the report says %s, beside it stands %s", c[0], c[1], c[2]))
	}
	return odd
}

func describe(certs []*x509.Certificate) []any {
	out := make([]any, len(certs))
	for i, c := range certs {
		out[i] = map[string]any{
			"subject": c.Subject.String(), "issuer": c.Issuer.String(), "serial": c.SerialNumber.Text(16),
			"not_before": c.NotBefore.UTC().Format("2006-01-02T15:04:05Z"), "not_after": c.NotAfter.UTC().Format("2006-01-02T15:04:05Z"),
		}
	}
	return out
}
