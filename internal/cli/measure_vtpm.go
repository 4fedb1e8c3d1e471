package cli

import (
	"encoding/hex"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/measure/qemuload"
	"github.com/coffer-project/coffer/tee/measure/reference"
	"github.com/coffer-project/coffer/tee/measure/vtpm"
)

// vtpmFlags are those of `coffer measure vtpm`.
type vtpmFlags struct {
	boot      bootFiles
	out       measureOut
	l         vtpm.Launch
	vars      string
	machine   string
	memory    string
	bank, pei string
}

func (a *app) measureVTPMCommand() *cobra.Command {
	var v vtpmFlags
	c := &cobra.Command{
		Use: "vtpm", Short: "Predict the PCRs of a TPM after OVMF has started a kernel",
		Long: `Predict the PCRs 0 to 9 of a virtual TPM when QEMU starts OVMF with a kernel
(-kernel, -initrd, -append). PCR 0 also covers what the firmware writes into itself
before it measures itself: it needs --pei-volume, the digest of that event from the
log of a boot that is trusted (` + "`coffer eventlog inspect`" + `).`,
		Example: `  coffer measure vtpm --firmware OVMF_CODE_4M.fd --vars OVMF_VARS_4M.fd --kernel vmlinuz --initrd initrd.img --cmdline "console=ttyS0" --memory 512
  coffer measure vtpm --firmware OVMF.fd --kernel vmlinuz --memory 2Gi --format references`,
		Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error { return v.run(a) },
	}
	f := c.Flags()
	v.boot.add(c)
	f.StringVar(&v.vars, "vars", "", "variable store as it is at the start (default: without variables)")
	f.StringVar(&v.l.FirmwareVersion, "firmware-version", "", "version text that the firmware was built with (Debian 12: none)")
	f.StringVar(&v.machine, "machine", string(qemuload.Q35), "QEMU machine type: q35 or pc")
	f.StringVar(&v.memory, "memory", "512", "the machine's memory in MiB, or with a suffix (2Gi)")
	f.BoolVar(&v.l.KernelAsIs, "raw-kernel", false, "the firmware gets the kernel unchanged, as with SEV")
	f.StringVar(&v.bank, "bank", "sha256", "bank of the PCRs: sha1, sha256, sha384 or sha512")
	f.StringVar(&v.pei, "pei-volume", "", "digest, in the bank's algorithm, of the event over the firmware's PEI volume")
	v.out.add(c, true)
	return c
}

func (v *vtpmFlags) run(a *app) error {
	if err := v.out.check(a); err != nil {
		return err
	}
	bank, ok := map[string]eventlog.Alg{"sha1": eventlog.SHA1, "sha256": eventlog.SHA256, "sha384": eventlog.SHA384, "sha512": eventlog.SHA512}[v.bank]
	if !ok {
		return usagef("--bank: expected sha1, sha256, sha384 or sha512, got %q", v.bank)
	}
	if v.pei != "" {
		digest, err := hex.DecodeString(v.pei)
		if err != nil || len(digest) != bank.Size() {
			return usagef("--pei-volume: expected %d bytes in hex, got %q", bank.Size(), v.pei)
		}
		v.l.PEIVolume = []eventlog.Digest{{Alg: bank, Value: digest}}
	}
	if err := v.read(); err != nil {
		return err
	}
	p, err := reference.VTPM(v.l, bank)
	if err != nil {
		return err
	}
	return v.out.write(a, p)
}

// read completes the launch from the flags.
func (v *vtpmFlags) read() (err error) {
	memory := v.memory
	if strings.Trim(memory, "0123456789") == "" {
		memory += "Mi"
	}
	if v.l.Memory, err = podpolicy.ParseBytes(memory); err != nil {
		return usagef("--memory: %w", err)
	}
	if v.machine != string(qemuload.Q35) && v.machine != string(qemuload.PC) {
		return usagef("--machine: expected q35 or pc, got %q", v.machine)
	}
	if v.boot.firmware != "" && v.boot.kernel == "" {
		return usageError{hint.New(errors.New("--kernel is needed: only direct kernel boot is predicted"), "give --kernel, and --initrd and --cmdline as QEMU gets them")}
	}
	v.l.Machine, v.l.Cmdline = qemuload.Machine(v.machine), v.boot.cmdline
	if v.vars != "" {
		if v.l.Vars, err = readSmall(v.vars, 16*maxSmall); err != nil {
			return usagef("--vars: %w", err)
		}
	}
	v.l.Firmware, v.l.Kernel, v.l.Initrd, err = v.boot.read()
	return err
}
