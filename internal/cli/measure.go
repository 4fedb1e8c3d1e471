package cli

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/measure/reference"
)

// Limits of the files that are measured.
const (
	maxKernel = 256 << 20
	maxInitrd = 2 << 30
	maxSmall  = 1 << 20
)

// formats in which predictions are written.
func measureFormats() []string { return []string{"text", "json", "references", "corim"} }

// measureOut is how a prediction is written.
type measureOut struct {
	format, out string
	key, signer string
	expires     string
	events      bool
}

func (a *app) measureCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "measure", Short: "Predict what evidence will say: launch measurements of SNP, TDX, TPM and SGX",
		Long: `Predict, from the files of a launch, the measurements that a genuine machine will
report, and write them as reference values for a trustee.

Formats (--format): text; json, the whole prediction with inputs and assumed
events; references, what "coffer trustee reference-value register" takes; corim,
the same as a CoRIM, signed with --corim-key. Nothing is sent anywhere.

Exit codes: 0 when it was predicted, 1 when these files have no prediction, 2 for
wrong usage and files that cannot be read.`,
		Args: args(cobra.NoArgs), RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.measureSNPCommand(), a.measureTDXCommand(), a.measureVTPMCommand(), a.measureSGXCommand())
	return c
}

func (o *measureOut) add(c *cobra.Command, events bool) {
	f := c.Flags()
	f.StringVar(&o.format, "format", "", "how the prediction is written: "+strings.Join(measureFormats(), ", ")+" (default: as --output)")
	f.StringVar(&o.out, "out", "", "new file to write it to (default: standard output)")
	f.StringVar(&o.key, "corim-key", "", "PEM file with the private key that signs the CoRIM (default: unsigned)")
	f.StringVar(&o.signer, "corim-signer", "coffer", "name of the signer in a signed CoRIM")
	f.StringVar(&o.expires, "expires", "", "when the CoRIM ceases to count: 2027-01-01, a time of RFC 3339, or 90d from now")
	if events {
		f.BoolVar(&o.events, "events", false, "with text, also list the events that were assumed")
	}
}

// check reports wrong usage before anything is read.
func (o *measureOut) check(a *app) error {
	if o.format == "" {
		o.format = a.output
	}
	if !slices.Contains(measureFormats(), o.format) {
		return usagef("--format: expected %s, got %q", strings.Join(measureFormats(), ", "), o.format)
	}
	if o.format != "corim" && (o.key != "" || o.expires != "") {
		return usagef("--corim-key and --expires are of --format corim, got %q", o.format)
	}
	return nil
}

// write writes p.
func (o *measureOut) write(a *app, p reference.Prediction) error {
	data, err := o.encode(p)
	if err != nil {
		return err
	}
	if o.out == "" {
		_, err = a.env.Stdout.Write(data)
		return err
	}
	return writeFile(o.out, false, func(w io.Writer) error { _, err := w.Write(data); return err })
}

func (o *measureOut) encode(p reference.Prediction) ([]byte, error) {
	switch o.format {
	case "references":
		data, err := p.Message()
		return append(data, '\n'), err
	case "corim":
		return o.corim(p)
	case "json":
		data, err := p.JSON()
		return append(data, '\n'), err
	}
	return o.text(p), nil
}

// text is one line for each value.
func (o *measureOut) text(p reference.Prediction) []byte {
	var b strings.Builder
	for _, r := range p.References {
		for _, v := range r.Values {
			_, _ = fmt.Fprintf(&b, "%s  %s  %s\n", r.Name, v.Value, clean(v.Description))
		}
	}
	for _, u := range p.Unknown {
		_, _ = fmt.Fprintf(&b, "%s  unknown: %s\n", u.Name, clean(u.Reason))
	}
	if id := p.IDBlock; id != nil {
		_, _ = fmt.Fprintf(&b, "id_key_digest  %s\n", id.IDKeyDigest)
		if id.AuthorKeyDigest != "" {
			_, _ = fmt.Fprintf(&b, "author_key_digest  %s\n", id.AuthorKeyDigest)
		}
		_, _ = fmt.Fprintf(&b, "qemu  %s\n", id.QEMU)
	}
	if o.events {
		for _, e := range p.Events {
			_, _ = fmt.Fprintf(&b, "event  rtmr_%d  %s  %x  %s\n", e.Register, e.Type, e.Digest, clean(e.Description))
		}
		for _, e := range p.PCREvents {
			digest := "unknown"
			if len(e.Digests) > 0 {
				digest = hex.EncodeToString(e.Digests[0].Value)
			}
			_, _ = fmt.Fprintf(&b, "event  pcr%02d  %s  %s  %s\n", e.PCR, e.Type, digest, clean(e.What))
		}
	}
	return []byte(b.String())
}

func (o *measureOut) corim(p reference.Prediction) ([]byte, error) {
	var notAfter time.Time
	if o.expires != "" {
		var err error
		if notAfter, err = parseTime(o.expires, time.Now(), +1); err != nil {
			return nil, usagef("--expires: %w", err)
		}
	}
	data, err := p.CoRIM(notAfter)
	if err != nil || o.key == "" {
		return data, err
	}
	key, err := readSigner(o.key)
	if err != nil {
		return nil, usagef("--corim-key: %w", err)
	}
	return reference.SignCoRIM(rand.Reader, data, key, o.signer)
}

// readSigner reads a private key: PEM, PKCS #8, SEC 1 or PKCS #1.
func readSigner(path string) (crypto.Signer, error) {
	data, err := readSmall(path, maxSmall)
	if err != nil {
		return nil, err
	}
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return nil, fmt.Errorf("%s: expected a private key in PEM, PKCS #8, SEC 1 or PKCS #1", path)
		}
		var key any
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		default: // such as the parameters that openssl ecparam writes before a key
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("%s: a key of type %T cannot sign", path, key)
		}
		return signer, nil
	}
}

// bootFiles are the flags that say what is booted.
type bootFiles struct{ firmware, kernel, initrd, cmdline string }

func (b *bootFiles) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&b.firmware, "firmware", "", "firmware image, as QEMU's -bios gets it")
	f.StringVar(&b.kernel, "kernel", "", "kernel of a direct kernel boot (default: the firmware finds its own)")
	f.StringVar(&b.initrd, "initrd", "", "initrd of a direct kernel boot")
	f.StringVar(&b.cmdline, "cmdline", "", "kernel command line, as QEMU's -append gets it")
}

func (b *bootFiles) read() (firmware, kernel, initrd []byte, err error) {
	if b.firmware == "" {
		return nil, nil, nil, usageError{hint.New(errors.New("--firmware is needed"), "give the image that the machine starts with, such as --firmware /usr/share/ovmf/OVMF.fd")}
	}
	if b.kernel == "" && (b.initrd != "" || b.cmdline != "") {
		return nil, nil, nil, usagef("--initrd and --cmdline: expected --kernel beside them, got none: they are measured with it")
	}
	for _, f := range []struct {
		flag, path string
		limit      int64
		into       *[]byte
	}{{"--firmware", b.firmware, measure.MaxFirmware, &firmware}, {"--kernel", b.kernel, maxKernel, &kernel}, {"--initrd", b.initrd, maxInitrd, &initrd}} {
		if f.path == "" {
			continue
		}
		if *f.into, err = readSmall(f.path, f.limit); err != nil {
			return nil, nil, nil, usagef("%s: %w", f.flag, err)
		}
	}
	return firmware, kernel, initrd, nil
}

// counts reads numbers of CPUs: 4, 1-8, or 1,2,4-6.
func counts(flag, s string) (out []int, err error) {
	for part := range strings.SplitSeq(s, ",") {
		low, high, ranged := strings.Cut(part, "-")
		if !ranged {
			high = low
		}
		from, e1 := strconv.Atoi(low)
		to, e2 := strconv.Atoi(high)
		if e1 != nil || e2 != nil || from < 1 || to < from || to > measure.MaxVCPUs {
			return nil, usagef("%s: expected numbers from 1 to %d such as 4, 1-8 or 1,2,4, got %q", flag, measure.MaxVCPUs, s)
		}
		for n := from; n <= to; n++ {
			if !slices.Contains(out, n) {
				out = append(out, n)
			}
		}
	}
	return out, nil
}

// hexFlag reads exactly so many bytes of hex.
func hexFlag(flag, s string, into []byte) error {
	if n, err := hex.DecodeString(s); err != nil || len(n) != len(into) {
		return usagef("%s: expected %d bytes in hex, got %q", flag, len(into), s)
	}
	_, err := hex.Decode(into, []byte(s))
	return err
}
