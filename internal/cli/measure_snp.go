package cli

import (
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/measure/reference"
	"github.com/coffer-project/coffer/tee/measure/snpid"
	"github.com/coffer-project/coffer/tee/snp"
)

// snpFlags are those of `coffer measure snp`.
type snpFlags struct {
	boot             bootFiles
	out              measureOut
	vcpus            string
	model, signature string
	vmm              string
	features         string
	firmwareDigest   string
	id               idFlags
}

func (a *app) measureSNPCommand() *cobra.Command {
	var s snpFlags
	c := &cobra.Command{
		Use: "snp", Short: "Predict the launch digest of an SEV-SNP guest",
		Long: `Predict the MEASUREMENT of SEV-SNP reports: of firmware, kernel, initrd, command
line and virtual CPUs. Each number of CPUs has a digest of its own; --vcpus 1-8
predicts them all in one pass.

Firmware without SEV metadata (SeaBIOS) is started by the software TEE only.
With --id-key, --id-once or --id-anonymous an ID block is built for the digest,
and the option that starts QEMU's guest with it is printed.`,
		Example: `  coffer measure snp --firmware AMDSEV.fd --kernel vmlinuz --initrd initrd.img --cmdline "console=ttyS0" --vcpus 1-8 --vcpu-model EPYC-v4
  coffer measure snp --firmware OVMF.fd --vmm gce --vcpus 2 --format references
  coffer measure snp --firmware AMDSEV.fd --vcpu-signature 25:1:1 --id-key id.pem --author-key author.pem`,
		Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error { return s.run(a) },
	}
	f := c.Flags()
	s.boot.add(c)
	f.StringVar(&s.vcpus, "vcpus", "1", "virtual CPUs: a number, or several as 1-8 or 1,2,4")
	f.StringVar(&s.model, "vcpu-model", "", "QEMU CPU model, such as EPYC-v4 or EPYC-Genoa")
	f.StringVar(&s.signature, "vcpu-signature", "", "CPUID signature instead of a model: 0x00a00f11, or FAMILY:MODEL:STEPPING")
	f.StringVar(&s.vmm, "vmm", string(measure.VMMQEMU), "what starts the guest: qemu, ec2 or gce")
	f.StringVar(&s.features, "guest-features", "0x1", "SEV_FEATURES of the CPUs")
	f.StringVar(&s.firmwareDigest, "firmware-digest", "", "launch digest of the firmware's pages alone; then --firmware may be the image's last 4 KiB")
	s.id.add(c)
	s.out.add(c, false)
	return c
}

func (s *snpFlags) run(a *app) error {
	if err := s.out.check(a); err != nil {
		return err
	}
	l, numbers, err := s.launch()
	if err != nil {
		return err
	}
	p, err := reference.SNP(l, numbers)
	if errors.Is(err, measure.ErrVCPUModel) {
		return usageError{hint.New(fmt.Errorf("--vcpu-model: %w", err), "the guest's CPU model is measured: give --vcpu-model as QEMU's -cpu has it, or --vcpu-signature")}
	}
	if err != nil {
		return err
	}
	if p.Layout == measure.LayoutSoftware {
		a.logger().Warn("the firmware has no SEV metadata: no SNP host starts it, only the software TEE", "firmware", s.boot.firmware)
	}
	if err := s.id.build(&p, numbers); err != nil {
		return err
	}
	return s.out.write(a, p)
}

// launch turns flags into a launch.
func (s *snpFlags) launch() (l measure.Launch, numbers []int, err error) {
	if numbers, err = counts("--vcpus", s.vcpus); err != nil {
		return l, nil, err
	}
	if !slices.Contains(measure.VMMs(), measure.VMM(s.vmm)) {
		return l, nil, usagef("--vmm: expected qemu, ec2 or gce, got %q", s.vmm)
	}
	if s.signature != "" && s.model != "" {
		return l, nil, usagef("--vcpu-signature and --vcpu-model: expected one of them, got %q and %q", s.signature, s.model)
	}
	l = measure.Launch{Cmdline: s.boot.cmdline, VCPUModel: s.model, VMM: measure.VMM(s.vmm), VCPUs: 1}
	if l.GuestFeatures, err = strconv.ParseUint(s.features, 0, 64); err != nil || l.GuestFeatures&1 == 0 {
		return l, nil, usagef("--guest-features: expected a number such as 0x21, with bit 0 (SNP active) set, got %q", s.features)
	}
	if s.signature != "" {
		signature, err := cpuSignature(s.signature)
		if err != nil {
			return l, nil, usagef("--vcpu-signature: %w", err)
		}
		l.VCPUSignature = &signature
	}
	if s.firmwareDigest != "" {
		if err := hexFlag("--firmware-digest", s.firmwareDigest, l.FirmwareDigest[:]); err != nil {
			return l, nil, err
		}
	}
	l.Firmware, l.Kernel, l.Initrd, err = s.boot.read()
	return l, numbers, err
}

// cpuSignature reads a number, or family, model and stepping.
func cpuSignature(s string) (uint32, error) {
	if parts := strings.Split(s, ":"); len(parts) == 3 {
		var n [3]uint32
		for i, p := range parts {
			v, err := strconv.ParseUint(p, 0, 16)
			if err != nil {
				return 0, fmt.Errorf("expected FAMILY:MODEL:STEPPING, got %q", s)
			}
			n[i] = uint32(v)
		}
		return measure.SignatureOf(n[0], n[1], n[2])
	}
	v, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		return 0, fmt.Errorf("expected a number such as 0x00a00f11, or FAMILY:MODEL:STEPPING, got %q", s)
	}
	return uint32(v), nil
}

// idFlags are those of an ID block.
type idFlags struct {
	key, authorKey    string
	once, anonymous   bool
	policy            string
	svn               uint32
	family, image     string
	blockOut, authOut string
}

func (i *idFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&i.key, "id-key", "", "PEM file with the P-384 key that signs an ID block for the digest")
	f.StringVar(&i.authorKey, "author-key", "", "PEM file with the P-384 key that vouches for --id-key")
	f.BoolVar(&i.once, "id-once", false, "sign the ID block with a key that is thrown away")
	f.BoolVar(&i.anonymous, "id-anonymous", false, "sign the ID block without any key: everybody gets the same block")
	f.StringVar(&i.policy, "id-policy", fmt.Sprintf("%#x", snp.PolicyReserved1|snp.PolicySMT), "guest policy that the ID block demands")
	f.Uint32Var(&i.svn, "id-svn", 0, "security version of the guest in the ID block")
	f.StringVar(&i.family, "id-family", strings.Repeat("0", 32), "family identifier in the ID block, 16 bytes in hex")
	f.StringVar(&i.image, "id-image", strings.Repeat("0", 32), "image identifier in the ID block, 16 bytes in hex")
	f.StringVar(&i.blockOut, "id-block-out", "", "new file for the ID block")
	f.StringVar(&i.authOut, "id-auth-out", "", "new file for the ID authentication information")
}

// build adds an ID block to p if one is asked for.
func (i *idFlags) build(p *reference.Prediction, numbers []int) error {
	ways := 0
	for _, asked := range []bool{i.key != "", i.once, i.anonymous} {
		if asked {
			ways++
		}
	}
	switch {
	case ways == 0 && (i.authorKey != "" || i.blockOut != "" || i.authOut != ""):
		return usagef("an ID block needs --id-key, --id-once or --id-anonymous")
	case ways == 0:
		return nil
	case ways > 1 || i.authorKey != "" && i.key == "":
		return usagef("expected one of --id-key, --id-once and --id-anonymous, and --author-key with --id-key only")
	case len(numbers) != 1:
		return usagef("an ID block is for one launch digest: give one number as --vcpus, got %d", len(numbers))
	}
	b := snpid.Block{GuestSVN: i.svn}
	var err error
	if b.Policy, err = strconv.ParseUint(i.policy, 0, 64); err != nil {
		return usagef("--id-policy: expected a number such as 0x30000, got %q", i.policy)
	}
	for _, h := range []struct {
		flag, text string
		into       []byte
	}{{"--id-family", i.family, b.FamilyID[:]}, {"--id-image", i.image, b.ImageID[:]}, {"prediction", p.References[0].Values[0].Value, b.Measurement[:]}} {
		if err := hexFlag(h.flag, h.text, h.into); err != nil {
			return err
		}
	}
	signed, err := i.sign(b)
	if err != nil {
		return err
	}
	p.SetIDBlock(signed)
	return i.writeFiles(signed)
}

func (i *idFlags) sign(b snpid.Block) (snpid.Signed, error) {
	switch {
	case i.once:
		return snpid.SignOnce(rand.Reader, b)
	case i.anonymous:
		return snpid.SignAnonymously(b)
	}
	idKey, err := readP384("--id-key", i.key)
	if err != nil {
		return snpid.Signed{}, err
	}
	var author *ecdsa.PrivateKey
	if i.authorKey != "" {
		if author, err = readP384("--author-key", i.authorKey); err != nil {
			return snpid.Signed{}, err
		}
	}
	signed, err := snpid.Sign(rand.Reader, b, idKey, author)
	if err != nil {
		return snpid.Signed{}, usageError{err}
	}
	return signed, nil
}

func readP384(flag, path string) (*ecdsa.PrivateKey, error) {
	key, err := readSigner(path)
	if err != nil {
		return nil, usagef("%s: %w", flag, err)
	}
	k, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, usageError{hint.New(fmt.Errorf("%s: %s: expected an ECDSA key on P-384, got %T", flag, path, key), "make one with `openssl ecparam -name secp384r1 -genkey -noout`")}
	}
	return k, nil
}

func (i *idFlags) writeFiles(s snpid.Signed) error {
	for _, f := range []struct {
		path string
		data []byte
	}{{i.blockOut, s.Block[:]}, {i.authOut, s.Auth[:]}} {
		if f.path == "" {
			continue
		}
		if err := writeFile(f.path, false, func(w io.Writer) error { _, err := w.Write(f.data); return err }); err != nil {
			return err
		}
	}
	return nil
}
