// Package nvidia reads evidence of NVIDIA's GPUs and NVSwitches: the KBS form
// (kbs-attestation-rvps.md §2.4.11), and the transcript of an SPDM 1.1
// GET_MEASUREMENTS exchange (DMTF DSP0274 1.1) with NVIDIA's opaque data, which is
// what a device signs. Both the guest and the verifier use it; it judges
// nothing.
//
// Hopper and Blackwell GPUs and LS10 switches write the same layout and differ in
// the opaque fields that they fill. The facts about those are from NVIDIA's own
// verifiers (NVIDIA/nvtrust@0281730, NVIDIA/attestation-sdk@73c032e) and from
// evidence that is published with them.
package nvidia

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/tee/internal/pemchain"
)

// Limits on evidence from the other side.
const (
	// MaxEvidence bounds evidence JSON, in bytes.
	MaxEvidence = 1 << 20
	// MaxDevices bounds the devices in it: a machine has up to 16 GPUs and a few
	// switches.
	MaxDevices = 32
	// MaxReport bounds one report, in bytes (nvml.h, NVML_CC_GPU_ATTESTATION_REPORT_SIZE).
	MaxReport = 0x2000
	// MaxChain bounds one certificate chain in PEM, in bytes; NVML has room for 0x1400.
	MaxChain = 16 << 10

	maxText  = 128
	maxDepth = 3
)

// Arch is a generation of devices, as evidence spells it.
type Arch string

// The generations that attest.
const (
	Hopper    Arch = "HOPPER"
	Blackwell Arch = "BLACKWELL"
	// LS10 is the NVSwitch of Hopper's machines.
	LS10 Arch = "LS10"
)

// ParseArch reads a generation's name. Besides upper case, the two spellings of
// NVML's bindings are understood.
func ParseArch(s string) (Arch, error) {
	switch s {
	case "HOPPER", "Hopper":
		return Hopper, nil
	case "BLACKWELL", "Blackwell":
		return Blackwell, nil
	case "LS10":
		return LS10, nil
	}
	return "", fmt.Errorf("expected HOPPER, BLACKWELL or LS10, got %.32q", s)
}

// Title is the name as claims spell it: Hopper, Blackwell, LS10.
func (a Arch) Title() string {
	switch a {
	case Hopper:
		return "Hopper"
	case Blackwell:
		return "Blackwell"
	default:
		return string(a)
	}
}

// Device is the evidence of one device.
type Device struct {
	Arch Arch
	// UUID is the driver's name for the device; empty where the attester gives
	// none. Nothing vouches for it.
	UUID string
	// Report is the SPDM transcript, for [ParseReport].
	Report []byte
	// Chain is the certificate chain in PEM, the device's first.
	Chain []byte
	// Nonce, DriverVersion and VBIOSVersion are what newer attesters repeat
	// beside the report; empty where they do not. Nothing vouches for them.
	Nonce, DriverVersion, VBIOSVersion string
}

// Certificates are those of the chain, the device's first. Nothing about them is
// verified. Text may end in any number of line ends, as files do that come from
// NVIDIA's tools.
func (d *Device) Certificates() ([]*x509.Certificate, error) {
	return pemchain.Parse(bytes.TrimRight(d.Chain, "\n"))
}

// Evidence is that of all devices.
type Evidence struct{ Devices []Device }

type wireEvidence struct {
	Devices []wireDevice `json:"device_evidence_list"`
}

type wireDevice struct {
	Arch          string `json:"arch"`
	UUID          string `json:"uuid,omitempty"`
	Evidence      string `json:"evidence"`
	Certificate   string `json:"certificate"`
	Nonce         string `json:"nonce,omitempty"`
	DriverVersion string `json:"driver_version,omitempty"`
	VBIOSVersion  string `json:"vbios_version,omitempty"`
	// Version is that of the entry; NVIDIA's tools write "1.0".
	Version string `json:"version,omitempty"`
}

// ParseEvidence reads the KBS form of evidence. The error names the field.
func ParseEvidence(raw json.RawMessage) (*Evidence, error) {
	var w wireEvidence
	if err := strictjson.Decode(raw, &w, strictjson.Limits{Bytes: MaxEvidence, Depth: maxDepth}); err != nil {
		return nil, err
	}
	return w.devices()
}

// parseList reads NVIDIA's own form: the list alone.
func parseList(raw []byte) (*Evidence, error) {
	var w wireEvidence
	if err := strictjson.Decode(raw, &w.Devices, strictjson.Limits{Bytes: MaxEvidence, Depth: maxDepth}); err != nil {
		return nil, err
	}
	return w.devices()
}

func (w *wireEvidence) devices() (*Evidence, error) {
	if n := len(w.Devices); n == 0 || n > MaxDevices {
		return nil, fmt.Errorf("device_evidence_list: expected 1 to %d devices, got %d", MaxDevices, n)
	}
	e := &Evidence{Devices: make([]Device, len(w.Devices))}
	for i, d := range w.Devices {
		var err error
		if e.Devices[i], err = d.device(); err != nil {
			return nil, fmt.Errorf("device_evidence_list[%d].%w", i, err)
		}
	}
	return e, nil
}

func (w wireDevice) device() (Device, error) {
	d := Device{UUID: w.UUID, Nonce: w.Nonce, DriverVersion: w.DriverVersion, VBIOSVersion: w.VBIOSVersion}
	var err error
	if d.Arch, err = ParseArch(w.Arch); err != nil {
		return Device{}, fmt.Errorf("arch: %w", err)
	}
	for _, f := range [][2]string{{"uuid", w.UUID}, {"nonce", w.Nonce}, {"driver_version", w.DriverVersion}, {"vbios_version", w.VBIOSVersion}} {
		if len(f[1]) > maxText || !printable(f[1]) {
			return Device{}, fmt.Errorf("%s: expected at most %d printable characters, got %d bytes", f[0], maxText, len(f[1]))
		}
	}
	if w.Version != "" && w.Version != "1.0" {
		return Device{}, fmt.Errorf("version: expected 1.0, got %.32q", w.Version)
	}
	if d.Report, err = decodeReport(w.Evidence); err != nil {
		return Device{}, fmt.Errorf("evidence: %w", err)
	}
	if d.Chain, err = decodeBase64(w.Certificate, MaxChain); err != nil {
		return Device{}, fmt.Errorf("certificate: %w", err)
	}
	return d, nil
}

// hexStart is how a report begins in hex: the SPDM version and the request code.
const hexStart = "11e0"

// decodeReport reads a report in hex or in base64. In base64 a report begins
// with "EeAB", so that the two cannot be taken for one another.
func decodeReport(s string) ([]byte, error) {
	if !strings.HasPrefix(strings.ToLower(s[:min(len(s), len(hexStart))]), hexStart) {
		return decodeBase64(s, MaxReport)
	}
	if hex.DecodedLen(len(s)) > MaxReport {
		return nil, fmt.Errorf("expected at most %d bytes, got %d", MaxReport, hex.DecodedLen(len(s)))
	}
	b, err := hex.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("expected hex: %w", err)
	}
	return b, nil
}

func decodeBase64(s string, limit int) ([]byte, error) {
	if s == "" {
		return nil, errors.New("expected something, got nothing")
	}
	if base64.StdEncoding.DecodedLen(len(s)) > limit+2 {
		return nil, fmt.Errorf("expected at most %d bytes, got %d of base64", limit, len(s))
	}
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("expected base64 on one line")
	}
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("expected standard base64: %w", err)
	}
	if len(b) > limit {
		return nil, fmt.Errorf("expected at most %d bytes, got %d", limit, len(b))
	}
	return b, nil
}

func printable(s string) bool {
	for _, c := range []byte(s) {
		if c < 0x20 || c > 0x7E {
			return false
		}
	}
	return true
}

// JSON writes the KBS form, with reports in base64 as today's attesters do.
func (e *Evidence) JSON() (json.RawMessage, error) {
	w := wireEvidence{Devices: make([]wireDevice, len(e.Devices))}
	for i, d := range e.Devices {
		w.Devices[i] = wireDevice{
			Arch: string(d.Arch), UUID: d.UUID, Evidence: base64.StdEncoding.EncodeToString(d.Report), Certificate: base64.StdEncoding.EncodeToString(d.Chain),
			Nonce: d.Nonce, DriverVersion: d.DriverVersion, VBIOSVersion: d.VBIOSVersion,
		}
	}
	return json.Marshal(w)
}
