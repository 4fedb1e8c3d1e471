package reference

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/measure/qemuload"
	"github.com/coffer-project/coffer/tee/measure/vtpm"
)

// vtpmInputs is what was measured; files are SHA-256 digests in lower-case hex.
type vtpmInputs struct {
	Firmware        string           `json:"firmware"`
	FirmwareVersion string           `json:"firmware_version,omitempty"`
	Vars            string           `json:"vars,omitempty"`
	Kernel          string           `json:"kernel"`
	Initrd          string           `json:"initrd,omitempty"`
	Cmdline         string           `json:"cmdline"`
	Machine         qemuload.Machine `json:"machine,omitempty"`
	Memory          uint64           `json:"memory,omitempty"`
	KernelAsIs      bool             `json:"kernel_as_is,omitempty"`
	Bank            string           `json:"bank"`
}

// VTPM predicts the PCRs of one bank, as tpm_pcr00 to tpm_pcr23. l.Algorithms is
// not used.
func VTPM(l vtpm.Launch, bank eventlog.Alg) (Prediction, error) {
	l.Algorithms = []eventlog.Alg{bank}
	r, err := vtpm.Predict(l)
	if err != nil {
		return Prediction{}, err
	}
	file := func(b []byte) string {
		if len(b) == 0 {
			return ""
		}
		sum := sha256.Sum256(b)
		return hex.EncodeToString(sum[:])
	}
	p := Prediction{TEE: tee.TPM, Inputs: vtpmInputs{
		Firmware: file(l.Firmware), FirmwareVersion: l.FirmwareVersion, Vars: file(l.Vars), Kernel: file(l.Kernel), Initrd: file(l.Initrd),
		Cmdline: l.Cmdline, Machine: l.Machine, Memory: l.Memory, KernelAsIs: l.KernelAsIs, Bank: bank.String(),
	}}
	name := func(pcr int) string { return fmt.Sprintf("tpm_pcr%02d", pcr) }
	for _, pcr := range slices.Sorted(maps.Keys(r.PCRs[bank])) {
		p.add(name(pcr), r.PCRs[bank][pcr], "%s", pcrUse(pcr))
	}
	for _, pcr := range slices.Sorted(maps.Keys(r.Unpredicted)) {
		p.Unknown = append(p.Unknown, Unknown{name(pcr), r.Unpredicted[pcr]})
	}
	for _, e := range r.Events {
		p.PCREvents = append(p.PCREvents, PCREvent{e})
	}
	return p, nil
}

// pcrUse says what a PCR covers (TCG PC Client Platform Firmware Profile, §3.3.4).
func pcrUse(pcr int) string {
	uses := [...]string{"firmware", "boot options", "option ROMs", "option ROMs' data", "kernel", "boot actions", "platform", "secure boot", "", "command line, initrd"}
	if pcr < len(uses) {
		return uses[pcr]
	}
	return ""
}

// PCREvent is one measurement into a PCR that a prediction assumes.
type PCREvent struct{ vtpm.Event }

// MarshalJSON gives register, type, digest (null where it is not known) and
// description.
func (e PCREvent) MarshalJSON() ([]byte, error) {
	out := struct {
		Register    string  `json:"register"`
		Type        string  `json:"type"`
		Digest      *string `json:"digest"`
		Description string  `json:"description"`
	}{fmt.Sprintf("pcr%02d", e.PCR), e.Type.String(), nil, e.What}
	if len(e.Digests) > 0 {
		d := hex.EncodeToString(e.Digests[0].Value)
		out.Digest = &d
	}
	return json.Marshal(out)
}
