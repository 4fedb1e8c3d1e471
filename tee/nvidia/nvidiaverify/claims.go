package nvidiaverify

import (
	"encoding/hex"
	"strings"
	"time"

	"github.com/coffer-project/coffer/tee/nvidia"
)

// claim writes what is known of a device without collateral. Whoever calls it
// returns the claims only when every check has passed.
func (d *device) claim(bound bool) {
	c, k := d.claims, "x-nvidia-"+d.kind()+"-"
	c["arch"], c["uuid"], c["measurements"], c["config"] = d.Arch.Title(), "unknown", d.report.Values(), d.report.Config()
	if d.UUID != "" {
		c["uuid"] = d.UUID
	}
	c["simulated"] = d.chain.root.development != ""
	if name := d.chain.root.development; name != "" {
		c["development_root"] = name
	}
	c["hwmodel"], c["ueid"] = d.chain.model, d.chain.ueid
	c["x-nvidia-chip"], c["x-nvidia-serial"], c["x-nvidia-pdi"] = d.chain.id.Chip, d.chain.id.Serial, d.chain.pdi
	if f := d.chain.dice.flags; f != nil {
		c["x-nvidia-dice-flags"] = hex.EncodeToString(f)
	}
	c[k+"arch-check"], c[k+"attestation-report-parsed"], c[k+"attestation-report-signature-verified"] = true, true, true
	c[k+"attestation-report-cert-chain"] = map[string]any{
		"x-nvidia-cert-status": "valid", "x-nvidia-cert-expiration-date": d.chain.to.UTC().Format(time.RFC3339),
	}
	if d.report.Field(nvidia.FieldFWID) != nil {
		c[k+"attestation-report-cert-chain-fwid-match"] = true
	}
	if bound {
		c[k+"attestation-report-nonce-match"] = true
	}
	if d.Arch == nvidia.LS10 {
		c[k+"bios-version"] = strings.ToUpper(d.report.VBIOSVersion())
		return
	}
	c[k+"vbios-version"], c[k+"driver-version"] = strings.ToUpper(d.report.VBIOSVersion()), d.report.Text(nvidia.FieldDriverVersion)
}

// certClaims are the claims about the device's chain.
func (d *device) certClaims() map[string]any {
	m, ok := d.claims["x-nvidia-"+d.kind()+"-attestation-report-cert-chain"].(map[string]any)
	if !ok {
		return map[string]any{}
	}
	return m
}
