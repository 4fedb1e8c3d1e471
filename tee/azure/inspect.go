package azure

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/tpm"
)

// Inspect decodes evidence JSON of any version, or a bare HCL report, without
// trusting it. It fails only where data is neither.
func Inspect(data []byte) (*tee.Inspection, error) {
	if len(data) > MaxEvidence {
		return nil, fmt.Errorf("azure: expected at most %d bytes, got %d", MaxEvidence, len(data))
	}
	if bytes.HasPrefix(data, []byte("HCLA")) {
		in := &tee.Inspection{Format: "HCL report", Fields: map[string]any{}}
		inspectReport(in, data)
		return in, nil
	}
	name := guess(data)
	if name == "" {
		return nil, errors.New("azure: expected evidence JSON with hcl_report or report and td_quote or vcek, or an HCL report")
	}
	in := &tee.Inspection{TEE: name, Format: "KBS evidence JSON", Fields: map[string]any{}}
	e, err := ParseEvidence(name, data)
	if err != nil {
		in.Odd = append(in.Odd, err.Error())
		return in, nil
	}
	in.Format = fmt.Sprintf("KBS evidence JSON, version %d", e.Version)
	in.Fields["signature"] = hex.EncodeToString(e.Quote.Signature)
	tpm.InspectPCRs(in, e.Quote.PCRs.Hex())
	tpm.InspectMessage(in, e.Quote.Message)
	inspectReport(in, e.HCLReport)
	in.TEE = name
	switch {
	case e.VCEKPEM != nil:
		in.Fields["vcek"] = string(e.VCEKPEM)
	case e.VCEK != nil:
		in.Fields["vcek"] = hex.EncodeToString(e.VCEK)
	}
	if e.TDQuote != nil {
		in.Fields["td_quote"] = hex.EncodeToString(e.TDQuote)
	}
	if e.Version < 2 {
		in.Odd = append(in.Odd, fmt.Sprintf("version %d: nothing shows that the hardware report is fresh", e.Version))
	}
	return in, nil
}

// guess tells the environment by the members that only one has.
func guess(data []byte) tee.Name {
	var w struct {
		TPMQuote  json.RawMessage `json:"tpm_quote"`
		Quote     json.RawMessage `json:"quote"`
		HCLReport json.RawMessage `json:"hcl_report"`
		Report    json.RawMessage `json:"report"`
		VCEK      json.RawMessage `json:"vcek"`
		TDQuote   json.RawMessage `json:"td_quote"`
	}
	switch err := json.Unmarshal(data, &w); {
	case err != nil || w.TPMQuote == nil && w.Quote == nil || w.HCLReport == nil && w.Report == nil:
		return ""
	case w.TDQuote != nil:
		return tee.AzureTDXVTPM
	case w.VCEK != nil:
		return tee.AzureSNPVTPM
	}
	return ""
}

func inspectReport(in *tee.Inspection, raw []byte) {
	r, err := ParseReport(raw)
	if err != nil {
		in.Odd = append(in.Odd, err.Error())
		return
	}
	in.TEE = r.Type.TEE()
	in.Fields["hcl_version"] = r.Version
	in.Fields["hcl_report_type"] = uint32(r.Type)
	in.Fields["hardware_report"] = hex.EncodeToString(r.Hardware)
	sum := sha256.Sum256(r.VarData)
	in.Fields["runtime_claims_sha256"] = hex.EncodeToString(sum[:])
	in.Fields["runtime_claims"] = string(bytes.ToValidUTF8(r.VarData, []byte("\uFFFD")))
	c, err := ParseRuntimeClaims(r.VarData)
	if err != nil {
		in.Odd = append(in.Odd, err.Error())
		return
	}
	in.Fields["user_data"] = hex.EncodeToString(c.UserData)
	in.Fields["ak_bits"] = c.AK.N.BitLen()
	if allZero(c.UserData) {
		in.Odd = append(in.Odd, "user-data: zeros: the report was not made for a handshake")
	}
}
