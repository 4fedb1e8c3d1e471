package dcap

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// TCBInfo is what Intel says about the patch levels of a platform family
// (PCS API version 4, "TcbInfo", format version 3).
type TCBInfo struct {
	ID                   string // "SGX" or "TDX"
	Version              int    // 3
	FMSPC                [6]byte
	PCEID                [2]byte
	TCBType              int // 0
	EvaluationDataNumber int
	IssueDate            time.Time
	NextUpdate           time.Time
	// Module is what a TDX module of TDX 1.0 must be; nil for SGX.
	Module *ModuleIdentity
	// Modules are those of TDX 1.5 and later, told apart by their major
	// version.
	Modules []ModuleIdentity
	// Levels are in Intel's order, the best first.
	Levels []TCBLevel

	// Root is the anchor of IssuerChain, which is the signer first.
	Root        *Root
	IssuerChain []*x509.Certificate
}

// ModuleIdentity is what a TDX module must be.
type ModuleIdentity struct {
	ID             string // "TDX_03" for major version 3; empty for TDX 1.0
	MRSigner       [48]byte
	Attributes     [8]byte
	AttributesMask [8]byte
	Levels         []EnclaveLevel
}

// TCBLevel is one patch level of a platform.
type TCBLevel struct {
	SGX        [16]byte // SGX TCB component SVNs
	TDX        [16]byte // TDX TCB component SVNs; zero in SGX TCB info
	PCESVN     uint16
	Date       time.Time
	Status     Status
	Advisories []string
}

// EnclaveLevel is one patch level of a quoting enclave or TDX module.
type EnclaveLevel struct {
	ISVSVN     uint16
	Date       time.Time
	Status     Status
	Advisories []string
}

type wireTCBInfo struct {
	ID                   string       `json:"id"`
	Version              int          `json:"version"`
	IssueDate            time.Time    `json:"issueDate"`
	NextUpdate           time.Time    `json:"nextUpdate"`
	FMSPC                hexBytes     `json:"fmspc"`
	PCEID                hexBytes     `json:"pceId"`
	TCBType              int          `json:"tcbType"`
	EvaluationDataNumber int          `json:"tcbEvaluationDataNumber"`
	Module               *wireModule  `json:"tdxModule"`
	Modules              []wireModule `json:"tdxModuleIdentities"`
	Levels               []struct {
		TCB struct {
			SGX    []wireComponent `json:"sgxtcbcomponents"`
			TDX    []wireComponent `json:"tdxtcbcomponents"`
			PCESVN *uint16         `json:"pcesvn"`
		} `json:"tcb"`
		wireVerdict
	} `json:"tcbLevels"`
}

type wireComponent struct {
	SVN uint8 `json:"svn"`
}

type wireVerdict struct {
	Date       time.Time `json:"tcbDate"`
	Status     Status    `json:"tcbStatus"`
	Advisories []string  `json:"advisoryIDs"`
}

func (w wireVerdict) check() error {
	if w.Date.IsZero() || w.Status == "" {
		return fmt.Errorf("tcbDate, tcbStatus: expected both, got %q and %.40q", w.Date.Format(time.RFC3339), w.Status)
	}
	if len(w.Advisories) > maxAdvisories {
		return fmt.Errorf("advisoryIDs: expected at most %d, got %d", maxAdvisories, len(w.Advisories))
	}
	return nil
}

type wireModule struct {
	ID             string             `json:"id"`
	MRSigner       hexBytes           `json:"mrsigner"`
	Attributes     hexBytes           `json:"attributes"`
	AttributesMask hexBytes           `json:"attributesMask"`
	Levels         []wireEnclaveLevel `json:"tcbLevels"`
}

type wireEnclaveLevel struct {
	TCB struct {
		ISVSVN *uint16 `json:"isvsvn"`
	} `json:"tcb"`
	wireVerdict
}

// ParseTCBInfo reads a TCB info and checks its signature and that the signer's
// chain ends in one of r. Dates are not judged.
func ParseTCBInfo(s Signed, r *RootSet) (*TCBInfo, error) {
	inner, signature, err := openTCBInfo(s.Body)
	if err != nil {
		return nil, fmt.Errorf("dcap: TCB info: %w", err)
	}
	chain, root, err := signedBy(inner, signature, s.IssuerChain, r)
	if err != nil {
		return nil, fmt.Errorf("dcap: TCB info: %w", err)
	}
	var w wireTCBInfo
	if err := json.Unmarshal(inner, &w); err != nil {
		return nil, fmt.Errorf("dcap: TCB info: %w", err)
	}
	t, err := w.decode()
	if err != nil {
		return nil, fmt.Errorf("dcap: TCB info: %w", err)
	}
	t.Root, t.IssuerChain = root, chain
	return t, nil
}

func (w *wireTCBInfo) decode() (*TCBInfo, error) {
	t := &TCBInfo{
		ID: w.ID, Version: w.Version, TCBType: w.TCBType, EvaluationDataNumber: w.EvaluationDataNumber,
		IssueDate: w.IssueDate, NextUpdate: w.NextUpdate,
	}
	if w.Version != 3 {
		return nil, fmt.Errorf("version: expected 3, got %d", w.Version)
	}
	if w.ID != "SGX" && w.ID != "TDX" {
		return nil, fmt.Errorf("id: expected SGX or TDX, got %.20q", w.ID)
	}
	if w.TCBType != 0 {
		return nil, fmt.Errorf("tcbType: expected 0, got %d", w.TCBType)
	}
	if len(w.Levels) == 0 || len(w.Levels) > maxLevels || len(w.Modules) > maxLevels {
		return nil, fmt.Errorf("tcbLevels, tdxModuleIdentities: expected 1 to %d and at most %d, got %d and %d", maxLevels, maxLevels, len(w.Levels), len(w.Modules))
	}
	for _, err := range []error{fixed("fmspc", t.FMSPC[:], w.FMSPC), fixed("pceId", t.PCEID[:], w.PCEID), checkDates(w.IssueDate, w.NextUpdate), t.levels(w), t.modules(w)} {
		if err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (t *TCBInfo) levels(w *wireTCBInfo) error {
	for i, from := range w.Levels {
		level := TCBLevel{Date: from.Date, Status: from.Status, Advisories: from.Advisories}
		err := components("sgxtcbcomponents", &level.SGX, from.TCB.SGX)
		if err == nil && t.ID == "TDX" {
			err = components("tdxtcbcomponents", &level.TDX, from.TCB.TDX)
		}
		if err == nil && from.TCB.PCESVN == nil {
			err = fmt.Errorf("pcesvn: expected a number, got none")
		}
		if err == nil {
			err = from.check()
		}
		if err != nil {
			return fmt.Errorf("tcbLevels[%d]: %w", i, err)
		}
		level.PCESVN = *from.TCB.PCESVN
		t.Levels = append(t.Levels, level)
	}
	return nil
}

func components(field string, to *[16]byte, from []wireComponent) error {
	if len(from) != len(to) {
		return fmt.Errorf("%s: expected %d, got %d", field, len(to), len(from))
	}
	for i, c := range from {
		to[i] = c.SVN
	}
	return nil
}

func (t *TCBInfo) modules(w *wireTCBInfo) error {
	if t.ID != "TDX" {
		return nil
	}
	if w.Module == nil {
		return fmt.Errorf("tdxModule: expected one, got none")
	}
	module, err := w.Module.decode()
	if err != nil {
		return fmt.Errorf("tdxModule: %w", err)
	}
	t.Module = module
	for i := range w.Modules {
		module, err := w.Modules[i].decode()
		if err != nil {
			return fmt.Errorf("tdxModuleIdentities[%d]: %w", i, err)
		}
		t.Modules = append(t.Modules, *module)
	}
	return nil
}

func (w *wireModule) decode() (*ModuleIdentity, error) {
	m := &ModuleIdentity{ID: w.ID}
	for _, err := range []error{fixed("mrsigner", m.MRSigner[:], w.MRSigner), fixed("attributes", m.Attributes[:], w.Attributes), fixed("attributesMask", m.AttributesMask[:], w.AttributesMask)} {
		if err != nil {
			return nil, err
		}
	}
	var err error
	m.Levels, err = enclaveLevels(w.Levels)
	return m, err
}

func enclaveLevels(from []wireEnclaveLevel) ([]EnclaveLevel, error) {
	if len(from) > maxLevels {
		return nil, fmt.Errorf("tcbLevels: expected at most %d, got %d", maxLevels, len(from))
	}
	var out []EnclaveLevel
	for i, l := range from {
		if l.TCB.ISVSVN == nil {
			return nil, fmt.Errorf("tcbLevels[%d]: isvsvn: expected a number, got none", i)
		}
		if err := l.check(); err != nil {
			return nil, fmt.Errorf("tcbLevels[%d]: %w", i, err)
		}
		out = append(out, EnclaveLevel{ISVSVN: *l.TCB.ISVSVN, Date: l.Date, Status: l.Status, Advisories: l.Advisories})
	}
	return out, nil
}

// module returns the identity of a TDX module by its major version, which is
// byte 1 of TEE_TCB_SVN: "TDX_" and two hexadecimal digits.
func (t *TCBInfo) module(major byte) *ModuleIdentity {
	if major == 0 {
		return t.Module
	}
	for i := range t.Modules {
		if strings.EqualFold(t.Modules[i].ID, fmt.Sprintf("TDX_%02X", major)) {
			return &t.Modules[i]
		}
	}
	return nil
}
