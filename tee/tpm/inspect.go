package tpm

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/tee"
)

// Inspect decodes evidence JSON, or a bare TPMS_ATTEST, without trusting it. It
// fails only where data is neither.
func Inspect(data []byte) (*tee.Inspection, error) {
	if len(data) > MaxEvidence {
		return nil, fmt.Errorf("tpm: expected at most %d bytes, got %d", MaxEvidence, len(data))
	}
	in := &tee.Inspection{TEE: tee.TPM, Fields: map[string]any{}}
	if bytes.HasPrefix(data, []byte{0xFF, 'T', 'C', 'G'}) {
		in.Format = "TPMS_ATTEST"
		InspectMessage(in, data)
		return in, nil
	}
	var w struct {
		TPMQuote *struct {
			Signature string   `json:"signature"`
			Message   string   `json:"message"`
			PCRs      []string `json:"pcrs"`
		} `json:"tpm_quote"`
		AKPublic       string   `json:"ak_public"`
		AKCertificates []string `json:"ak_certificates"`
		EventLog       string   `json:"event_log"`
	}
	if err := json.Unmarshal(data, &w); err != nil || w.TPMQuote == nil || w.AKPublic == "" {
		return nil, errors.New("tpm: expected evidence JSON with tpm_quote and ak_public, or a TPMS_ATTEST")
	}
	in.Format = "KBS evidence JSON"
	if _, err := ParseEvidence(data); err != nil {
		in.Odd = append(in.Odd, err.Error())
	}
	in.Fields["ak_public"] = w.AKPublic
	if len(w.AKCertificates) > 0 {
		in.Fields["ak_certificates"] = len(w.AKCertificates)
	}
	if w.EventLog != "" {
		in.Fields["event_log_characters"] = len(w.EventLog)
	}
	if raw, err := base64.StdEncoding.DecodeString(w.TPMQuote.Signature); err == nil {
		InspectSignature(in, raw)
	}
	InspectPCRs(in, w.TPMQuote.PCRs)
	if raw, err := base64.StdEncoding.DecodeString(w.TPMQuote.Message); err == nil {
		InspectMessage(in, raw)
	}
	return in, nil
}

// InspectMessage adds the fields of a TPMS_ATTEST to in.
func InspectMessage(in *tee.Inspection, message []byte) {
	in.Fields["message"] = hex.EncodeToString(message[:min(len(message), MaxMessage)])
	a, err := ParseAttest(message)
	if err != nil {
		in.Odd = append(in.Odd, err.Error())
		return
	}
	in.Fields["qualified_signer"] = hex.EncodeToString(a.QualifiedSigner)
	in.Fields["report_data"] = hex.EncodeToString(a.ExtraData)
	in.Fields["clock"] = a.Clock
	in.Fields["reset_count"] = a.ResetCount
	in.Fields["restart_count"] = a.RestartCount
	in.Fields["clock_safe"] = a.Safe
	in.Fields["firmware_version"] = fmt.Sprintf("%016x", a.FirmwareVersion)
	in.Fields["pcr_digest"] = hex.EncodeToString(a.PCRDigest)
	banks := map[string]any{}
	for _, s := range a.Selections {
		banks[s.Bank.String()] = fmt.Sprintf("%#08x", s.Mask())
	}
	in.Fields["pcr_selection"] = banks
	if len(a.Selections) != 1 || a.Selections[0].Bank != AlgSHA256 || a.Selections[0].Mask() != 1<<PCRCount-1 {
		in.Odd = append(in.Odd, "pcr_selection: expected all 24 registers of the SHA256 bank and no other")
	}
	if len(a.ExtraData) == 0 {
		in.Odd = append(in.Odd, "report_data: the quote has no nonce: it may be of any age")
	}
}

// InspectSignature adds the fields of a TPMT_SIGNATURE to in.
func InspectSignature(in *tee.Inspection, raw []byte) {
	s, err := ParseSignature(raw)
	if err != nil {
		in.Odd = append(in.Odd, err.Error())
		return
	}
	in.Fields["signature_scheme"] = s.String()
	if s.Scheme == AlgECDSA {
		in.Fields["signature_r"], in.Fields["signature_s"] = hex.EncodeToString(s.R), hex.EncodeToString(s.S)
		return
	}
	in.Fields["signature"] = hex.EncodeToString(s.RSA)
}

// InspectPCRs adds register values to in: at most 24, as they are.
func InspectPCRs(in *tee.Inspection, values []string) {
	if _, err := PCRsFromHex(values); err != nil {
		in.Odd = append(in.Odd, "pcrs: "+err.Error())
	}
	for i, v := range values[:min(len(values), PCRCount)] {
		in.Fields[fmt.Sprintf("pcr%02d", i)] = fmt.Sprintf("%.128s", v)
	}
}
