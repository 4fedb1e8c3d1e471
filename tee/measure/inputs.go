package measure

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
)

// Inputs names what a measurement was computed from, in a form that can be
// stored beside it and compared later.
type Inputs struct {
	// Firmware, Kernel and Initrd are SHA-256 digests in lower-case hex.
	// Kernel is empty where the firmware finds its own. Of firmware that is
	// given by [Launch].FirmwareDigest, Firmware is "snp:" and that digest.
	Firmware string `json:"firmware"`
	Kernel   string `json:"kernel,omitempty"`
	Initrd   string `json:"initrd,omitempty"`
	Cmdline  string `json:"cmdline"`
	VCPUs    int    `json:"vcpus"`
	// VCPUModel is a QEMU CPU model.
	VCPUModel string `json:"vcpu_model"`
	// VCPUSignature is a CPUID signature in hex, where there is no model.
	VCPUSignature string `json:"vcpu_signature,omitempty"`
	// VMM is the program that starts the guest, where it is not QEMU.
	VMM VMM `json:"vmm,omitempty"`
	// GuestFeatures is the VMSA's SEV_FEATURES; zero is DefaultGuestFeatures.
	GuestFeatures uint64 `json:"guest_features,omitempty"`
}

// Inputs describes l.
func (l Launch) Inputs() Inputs {
	in := Inputs{
		Firmware: hexSHA256(l.Firmware), Cmdline: l.Cmdline, VCPUs: l.VCPUs,
		VCPUModel: l.VCPUModel, GuestFeatures: l.features(),
	}
	if l.FirmwareDigest != ([48]byte{}) {
		in.Firmware = "snp:" + hex.EncodeToString(l.FirmwareDigest[:])
	}
	if l.VCPUSignature != nil {
		in.VCPUSignature = fmt.Sprintf("%#x", *l.VCPUSignature)
	}
	if l.VMM != VMMQEMU {
		in.VMM = l.VMM
	}
	if l.Kernel != nil {
		in.Kernel, in.Initrd = hexSHA256(l.Kernel), hexSHA256(l.Initrd)
	}
	return in
}

func hexSHA256(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Change is one input that differs.
type Change struct {
	// Input is the JSON name of the field of [Inputs].
	Input    string `json:"input"`
	Expected string `json:"expected"`
	Got      string `json:"got"`
}

// String is one line for people.
func (c Change) String() string {
	return fmt.Sprintf("%s: expected %q, got %q", c.Input, c.Expected, c.Got)
}

// Diff names the inputs in which got differs from want, in the order of the
// fields of [Inputs]. Nothing is returned for equal inputs.
func Diff(want, got Inputs) []Change {
	features := func(in Inputs) string {
		if in.GuestFeatures == 0 {
			in.GuestFeatures = DefaultGuestFeatures
		}
		return fmt.Sprintf("%#x", in.GuestFeatures)
	}
	all := []Change{
		{"firmware", want.Firmware, got.Firmware},
		{"kernel", want.Kernel, got.Kernel},
		{"initrd", want.Initrd, got.Initrd},
		{"cmdline", want.Cmdline, got.Cmdline},
		{"vcpus", strconv.Itoa(want.VCPUs), strconv.Itoa(got.VCPUs)},
		{"vcpu_model", want.VCPUModel, got.VCPUModel},
		{"vcpu_signature", want.VCPUSignature, got.VCPUSignature},
		{"vmm", string(want.VMM), string(got.VMM)},
		{"guest_features", features(want), features(got)},
	}
	var out []Change
	for _, c := range all {
		if c.Expected != c.Got {
			out = append(out, c)
		}
	}
	return out
}

// TDXInputs is [Inputs] of a trust domain.
type TDXInputs struct {
	// Firmware, Kernel and Initrd are SHA-256 digests in lower-case hex; Kernel is
	// empty where the firmware finds its own.
	Firmware string `json:"firmware"`
	Kernel   string `json:"kernel,omitempty"`
	Initrd   string `json:"initrd,omitempty"`
	Cmdline  string `json:"cmdline"`
	// Memory is in bytes.
	Memory uint64 `json:"memory"`
	VCPUs  int    `json:"vcpus"`
	// Order and Profile are empty in LayoutSoftware.
	Order          PageOrder  `json:"page_order,omitempty"`
	Profile        TDXProfile `json:"profile,omitempty"`
	RawKernel      bool       `json:"raw_kernel,omitempty"`
	NoInitrdOption bool       `json:"no_initrd_option,omitempty"`
}

// Inputs describes l.
func (l TDXLaunch) Inputs() TDXInputs {
	in := TDXInputs{
		Firmware: hexSHA256(l.Firmware), Cmdline: l.Cmdline, Memory: l.Memory, VCPUs: l.VCPUs,
		Order: l.Order, Profile: l.Profile, RawKernel: l.RawKernel, NoInitrdOption: l.NoInitrdOption,
	}
	if l.Kernel != nil {
		in.Kernel, in.Initrd = hexSHA256(l.Kernel), hexSHA256(l.Initrd)
	}
	return in
}
