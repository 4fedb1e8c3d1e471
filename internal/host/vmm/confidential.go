package vmm

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
)

// Confidential is hardware protection of a machine: *SNP or *TDX.
//
// The command lines are those that QEMU documents for 9.1 (SNP) and 10.1
// (TDX). They are pinned by golden files and have not been run: no machine
// with either was at hand.
type Confidential interface {
	// id names the object for the machine's confidential-guest-support.
	id() string
	// object is the value of -object.
	object() (string, error)
	validate() []error
	// minimum is the first QEMU version that has the object.
	minimum() (major, minor int)
}

// DefaultSNPPolicy is the guest policy of the SNP firmware ABI (publication
// 56860, §4.3): bit 17 must be one, bit 16 allows SMT; no debugging, no
// migration.
const DefaultSNPPolicy = 0x30000

// SNP is AMD SEV-SNP with QEMU's kernel hashes: the launch digest covers
// firmware, kernel, initrd, command line and virtual CPUs.
type SNP struct {
	// CBitPos is the position of the C bit: CPUID Fn8000_001F EBX[5:0].
	CBitPos int
	// ReducedPhysBits is how many bits of physical address the guest loses:
	// CPUID Fn8000_001F EBX[11:6].
	ReducedPhysBits int
	// Policy is the guest policy; zero is DefaultSNPPolicy.
	Policy uint64
	// HostData is the initdata digest, fitted; all zero without initdata.
	HostData [32]byte
}

func (*SNP) id() string { return "snp" }

func (*SNP) minimum() (int, int) { return 9, 1 }

func (s *SNP) object() (string, error) {
	policy := s.Policy
	if policy == 0 {
		policy = DefaultSNPPolicy
	}
	return options("sev-snp-guest",
		"id", s.id(),
		"cbitpos", strconv.Itoa(s.CBitPos),
		"reduced-phys-bits", strconv.Itoa(s.ReducedPhysBits),
		"kernel-hashes", "on",
		"policy", fmt.Sprintf("%#x", policy),
		"host-data", base64.StdEncoding.EncodeToString(s.HostData[:]),
	), nil
}

func (s *SNP) validate() []error {
	var problems []error
	if s.CBitPos < 32 || s.CBitPos > 63 {
		problems = append(problems, fmt.Errorf("snp.cbitpos: expected 32 to 63, got %d (CPUID Fn8000_001F EBX[5:0] of this host)", s.CBitPos))
	}
	if s.ReducedPhysBits < 1 || s.ReducedPhysBits > 63 {
		problems = append(problems, fmt.Errorf("snp.reduced_phys_bits: expected 1 to 63, got %d (CPUID Fn8000_001F EBX[11:6] of this host)", s.ReducedPhysBits))
	}
	if s.Policy != 0 && s.Policy&(1<<17) == 0 {
		problems = append(problems, fmt.Errorf("snp.policy: expected bit 17 set, got %#x (the firmware ABI reserves it as one)", s.Policy))
	}
	return problems
}

// DefaultQuotePort is the vsock port of Intel's quote generation service on
// the host (context id 2).
const DefaultQuotePort = 4050

// TDX is Intel TDX. MRTD measures the firmware; kernel, initrd and command
// line are in the runtime registers, by the firmware's event log.
type TDX struct {
	// MRConfigID is the initdata digest, fitted; all zero without initdata.
	MRConfigID [48]byte
	// QuotePort is the vsock port of the host's quote generation service;
	// zero is DefaultQuotePort.
	QuotePort uint32
}

func (*TDX) id() string { return "tdx" }

func (*TDX) minimum() (int, int) { return 10, 1 }

func (t *TDX) object() (string, error) {
	type socket struct {
		Type string `json:"type"`
		CID  string `json:"cid"`
		Port string `json:"port"`
	}
	port := t.QuotePort
	if port == 0 {
		port = DefaultQuotePort
	}
	// The socket is a structure, which the comma form of -object cannot hold.
	b, err := json.Marshal(struct {
		QOMType    string `json:"qom-type"`
		ID         string `json:"id"`
		MRConfigID string `json:"mrconfigid"`
		Quote      socket `json:"quote-generation-socket"`
	}{"tdx-guest", t.id(), base64.StdEncoding.EncodeToString(t.MRConfigID[:]), socket{"vsock", "2", strconv.FormatUint(uint64(port), 10)}})
	return string(b), err
}

func (*TDX) validate() []error { return nil }
