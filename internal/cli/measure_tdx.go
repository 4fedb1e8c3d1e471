package cli

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/measure/reference"
	"github.com/coffer-project/coffer/tee/measure/sigstruct"
)

// tdxFlags are those of `coffer measure tdx`.
type tdxFlags struct {
	boot      bootFiles
	out       measureOut
	l         measure.TDXLaunch
	memory    string
	order     string
	profile   string
	rtmr3     []string
	eventLog  string
	acpi      string
	blobs     [3]string
	variables []string
	bootOrder string
	boots     []string
	fwOrder   string
	authority string
}

func (a *app) measureTDXCommand() *cobra.Command {
	var t tdxFlags
	c := &cobra.Command{
		Use: "tdx", Short: "Predict MRTD and the RTMRs of a TDX guest",
		Long: `Predict what TDX quotes of a guest will say: MRTD of the firmware, RTMR1 of the
kernel, RTMR2 of command line and initrd, and RTMR0 if the machine's ACPI tables are
given. Every event that is assumed is listed with --events or --format json, to
compare with the guest's own event log.

RTMR0 needs what QEMU generates for the machine: --acpi is a directory with its
table-loader, rsdp and tables, which a guest started alike has as raw in
/sys/firmware/qemu_fw_cfg/by_name/etc/{table-loader,acpi/rsdp,acpi/tables}.
--acpi-loader, --acpi-rsdp and --acpi-tables take a file, or sha384:HEX.

No image says which events its firmware measures; --firmware-profile does:
  ovmf-2022  edk2 of 2022 and 2023
  ovmf-2024  edk2-stable202402 to 202502, such as Ubuntu 25.04's
  ovmf-2025  edk2-stable202505; RTMR0 also needs --variable-authority

Firmware without TDX metadata (SeaBIOS) is started by the software TEE only.`,
		Example: `  coffer measure tdx --firmware OVMF.fd --firmware-profile ovmf-2024 --kernel vmlinuz --initrd initrd.img --cmdline "console=ttyS0" --memory 2Gi
  coffer measure tdx --firmware OVMF.fd --firmware-profile ovmf-2024 --kernel vmlinuz --memory 2Gi --acpi tables/ --format references`,
		Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error { return t.run(a) },
	}
	f := c.Flags()
	t.boot.add(c)
	f.StringVar(&t.memory, "memory", "512", "the machine's memory in MiB, or with a suffix (2Gi)")
	f.IntVar(&t.l.VCPUs, "vcpus", 1, "virtual CPUs; counts for the software TEE only, elsewhere the ACPI tables say it")
	f.StringVar(&t.profile, "firmware-profile", "", "generation of the firmware: ovmf-2022, ovmf-2024 or ovmf-2025")
	f.StringVar(&t.order, "page-order", string(measure.PageOrderInterleaved), "how the VMM adds pages: interleaved, or two-pass (patched QEMU 7 and 8)")
	f.BoolVar(&t.l.RawKernel, "raw-kernel", false, "the firmware gets the kernel unchanged (QEMU 10 and firmware that reads etc/boot/kernel)")
	f.BoolVar(&t.l.NoInitrdOption, "no-initrd-option", false, "the firmware does not append initrd=initrd to the command line")
	f.StringVar(&t.acpi, "acpi", "", "directory with table-loader, rsdp and tables")
	f.StringVar(&t.blobs[0], "acpi-loader", "", "file etc/table-loader, or sha384:HEX")
	f.StringVar(&t.blobs[1], "acpi-rsdp", "", "file etc/acpi/rsdp, or sha384:HEX")
	f.StringVar(&t.blobs[2], "acpi-tables", "", "file etc/acpi/tables, or sha384:HEX")
	f.StringArrayVar(&t.variables, "uefi-variable", nil, "NAME=FILE with the content of SecureBoot, PK, KEK, db or dbx (repeatable; default: absent)")
	f.StringVar(&t.bootOrder, "boot-order", "", "file with the content of BootOrder (default: a direct kernel boot's)")
	f.StringArrayVar(&t.boots, "boot-option", nil, "file with the content of a Boot#### variable, in the order of BootOrder (repeatable)")
	f.StringVar(&t.fwOrder, "fw-boot-order", "", "file with QEMU's fw_cfg file bootorder; ovmf-2025 only")
	f.StringVar(&t.authority, "variable-authority", "", "SHA-384 of the EV_EFI_VARIABLE_AUTHORITY event; ovmf-2025 only")
	f.StringArrayVar(&t.rtmr3, "rtmr3", nil, "SHA-384 that extends RTMR3 (repeatable)")
	f.StringVar(&t.eventLog, "event-log-out", "", "new file for the assumed events as an event log (CCEL)")
	t.out.add(c, true)
	return c
}

func (t *tdxFlags) run(a *app) error {
	if err := t.out.check(a); err != nil {
		return err
	}
	if err := t.read(); err != nil {
		return err
	}
	p, err := reference.TDX(t.l)
	if err != nil {
		if t.profile == "" {
			return usageError{hint.New(err, "give --firmware-profile; see `coffer measure tdx --help`")}
		}
		return err
	}
	if p.Layout == measure.LayoutSoftware {
		a.logger().Warn("the firmware has no TDX metadata: no TDX host starts it, only the software TEE", "firmware", t.boot.firmware)
	}
	if t.eventLog != "" {
		log := measure.CCEL(p.Events)
		if err := writeFile(t.eventLog, false, func(w io.Writer) error { _, err := w.Write(log); return err }); err != nil {
			return err
		}
	}
	return t.out.write(a, p)
}

// read completes the launch from the flags.
func (t *tdxFlags) read() (err error) {
	memory := t.memory
	if strings.Trim(memory, "0123456789") == "" {
		memory += "Mi"
	}
	if t.l.Memory, err = podpolicy.ParseBytes(memory); err != nil {
		return usagef("--memory: %w", err)
	}
	if err := t.check(); err != nil {
		return err
	}
	t.l.Order, t.l.Profile, t.l.Cmdline = measure.PageOrder(t.order), measure.TDXProfile(t.profile), t.boot.cmdline
	for _, s := range t.rtmr3 {
		var d [48]byte
		if err := hexFlag("--rtmr3", s, d[:]); err != nil {
			return err
		}
		t.l.RTMR3 = append(t.l.RTMR3, d)
	}
	if t.l.RTMR0, err = t.platform(); err != nil {
		return err
	}
	t.l.Firmware, t.l.Kernel, t.l.Initrd, err = t.boot.read()
	return err
}

// check reports wrong values of flags that the files have no say in.
func (t *tdxFlags) check() error {
	switch {
	case t.l.Memory == 0 || t.l.Memory > measure.MaxMemory || t.l.Memory%4096 != 0:
		return usagef("--memory: expected pages of 4096 bytes, %d bytes at most, got %q", int64(measure.MaxMemory), t.memory)
	case t.l.VCPUs < 1 || t.l.VCPUs > measure.MaxVCPUs:
		return usagef("--vcpus: expected 1 to %d, got %d", measure.MaxVCPUs, t.l.VCPUs)
	case t.profile != "" && !slices.Contains(measure.TDXProfiles(), measure.TDXProfile(t.profile)):
		return usagef("--firmware-profile: expected ovmf-2022, ovmf-2024 or ovmf-2025, got %q", t.profile)
	case t.order != string(measure.PageOrderInterleaved) && t.order != string(measure.PageOrderTwoPass):
		return usagef("--page-order: expected interleaved or two-pass, got %q", t.order)
	}
	return nil
}

// platform is nil where no flag says anything of RTMR0.
func (t *tdxFlags) platform() (*measure.TDXPlatform, error) {
	var p measure.TDXPlatform
	given := false
	for i, b := range []struct {
		flag, name string
		into       *measure.Blob
	}{{"--acpi-loader", "table-loader", &p.Loader}, {"--acpi-rsdp", "rsdp", &p.RSDP}, {"--acpi-tables", "tables", &p.Tables}} {
		path := t.blobs[i]
		if path == "" && t.acpi != "" {
			path = filepath.Join(t.acpi, b.name)
		}
		if path == "" {
			continue
		}
		given = true
		if err := readBlob(b.flag, path, b.into); err != nil {
			return nil, err
		}
	}
	if !given {
		if len(t.variables)+len(t.boots) > 0 || t.bootOrder != "" || t.fwOrder != "" || t.authority != "" {
			return nil, usageError{hint.New(errors.New("UEFI variables are part of RTMR0, which needs the ACPI tables"), "give --acpi DIR, or --acpi-loader, --acpi-rsdp and --acpi-tables")}
		}
		return nil, nil
	}
	if t.profile == string(measure.ProfileOVMF2025) && t.authority == "" {
		return nil, usageError{hint.New(errors.New("--variable-authority: expected the digest that ovmf-2025 measures into RTMR0, got none"), "it is in the event log of a guest with the same firmware: `coffer eventlog inspect`")}
	}
	return &p, t.variablesInto(&p)
}

func readBlob(flag, path string, into *measure.Blob) (err error) {
	if digest, ok := strings.CutPrefix(path, "sha384:"); ok {
		return hexFlag(flag, digest, into.Digest[:])
	}
	if into.Data, err = readSmall(path, 16*maxSmall); err != nil {
		return usagef("%s: %w", flag, err)
	}
	return nil
}

func (t *tdxFlags) variablesInto(p *measure.TDXPlatform) (err error) {
	known := map[string]*[]byte{"SecureBoot": &p.SecureBoot, "PK": &p.PK, "KEK": &p.KEK, "db": &p.DB, "dbx": &p.DBX}
	for _, s := range t.variables {
		name, path, _ := strings.Cut(s, "=")
		into, ok := known[name]
		if !ok || path == "" {
			return usagef("--uefi-variable: expected SecureBoot, PK, KEK, db or dbx with =FILE, got %q", s)
		}
		if *into, err = readSmall(path, maxSmall); err != nil {
			return usagef("--uefi-variable: %w", err)
		}
	}
	for _, f := range []struct {
		flag, path string
		into       *[]byte
	}{{"--boot-order", t.bootOrder, &p.BootOrder}, {"--fw-boot-order", t.fwOrder, &p.FWBootOrder}} {
		if f.path == "" {
			continue
		}
		if *f.into, err = readSmall(f.path, maxSmall); err != nil {
			return usagef("%s: %w", f.flag, err)
		}
	}
	for _, path := range t.boots {
		b, err := readSmall(path, maxSmall)
		if err != nil {
			return usagef("--boot-option: %w", err)
		}
		p.Boot = append(p.Boot, b)
	}
	if t.authority != "" {
		return hexFlag("--variable-authority", t.authority, p.VariableAuthority[:])
	}
	return nil
}

func (a *app) measureSGXCommand() *cobra.Command {
	var (
		out measureOut
		by  string
	)
	c := &cobra.Command{
		Use: "sgx SIGSTRUCT", Short: "Predict what quotes of an SGX enclave will say, from its SIGSTRUCT",
		Long: `Verify an enclave's signature structure (1808 bytes) as the processor does, and
predict MRENCLAVE; or, with --by signer, MRSIGNER, product and security version,
which accept every enclave that the signer calls so.`,
		Example: `  coffer measure sgx enclave.sig --format references
  coffer measure sgx enclave.sig --by signer`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := out.check(a); err != nil {
				return err
			}
			if by != string(reference.SGXByEnclave) && by != string(reference.SGXBySigner) {
				return usagef("--by: expected enclave or signer, got %q", by)
			}
			raw, err := readSmall(args[0], maxSmall)
			if err != nil {
				return usageError{err}
			}
			s, err := sigstruct.Parse(raw)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			p, err := reference.SGX(s, reference.SGXBy(by))
			if err != nil {
				return usageError{err}
			}
			if s.AllowsDebug() {
				a.logger().Warn("the enclave may be started for debugging, when the host reads its memory; quotes say so")
			}
			return out.write(a, p)
		},
	}
	c.Flags().StringVar(&by, "by", string(reference.SGXByEnclave), "what the enclave is known by: enclave or signer")
	out.add(c, false)
	return c
}
