package eventlog

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"unicode/utf16"
)

// Boot is what a log says was booted. It is found by the conventions of edk2, GRUB,
// td-shim and the EFI stub of Linux; a log of other firmware may give less. It is
// only to be believed after [Log.Compare], and as far as the fields say.
//
// What runs later can extend registers, too, and write whatever events it likes
// behind those of the boot. That is why what loaders measure is read out of their own
// registers only (PCR 8 and 9, CCMR 3), and why a field is nil where two events say
// different things. It takes an image that one does not know, or a console that
// others can use, to add the first event about something: see Images.
type Boot struct {
	// SecureBoot is nil where no event says. Its digest matches.
	SecureBoot *bool
	// Images are all digests measured into the register of boot images (PCR 4,
	// CCMR 2), except fixed texts and partition tables whose data was hashed.
	// That an image is called a kernel is the log's word, but no image is missing
	// here: a policy that allows every one of them relies on nothing else.
	Images []Image
	// Kernel is the last image, as Authenticode digest, or what GRUB read as kernel,
	// as digest of the file, whichever is later. nil: none.
	Kernel []byte
	// Initrd is the digest of the initial RAM disk. nil: none.
	Initrd []byte
	// CmdlineDigest is that of the command line: of [LoadOptions] from the EFI stub,
	// of the text from GRUB. nil: none.
	CmdlineDigest []byte
	// Cmdline is the command line where its digest matches the text, empty
	// otherwise: the EFI stub leaves the digest only.
	Cmdline string
}

// Image is something that was loaded and started.
type Image struct {
	Type   EventType
	Path   []string
	Digest []byte
}

// Boot summarises the log, with the digests of an algorithm.
func (l *Log) Boot(a Alg) Boot {
	images, settings := 4, 7
	if l.Kind != TCG2 {
		images, settings = 2, 1
	}
	b := booted{files: map[string]*fact{}}
	for i := range l.Events {
		e := &l.Events[i]
		d := e.Digest(a)
		if e.Type == NoAction || d == nil {
			continue
		}
		switch {
		case e.Register == settings && e.Type == EFIVariableDriverConfig:
			b.secureBoot(l, e)
		case e.Register == images && !l.fixed(e):
			b.image(l, e, d)
		case l.ofLoader(e):
			b.loader(l, e, a, d)
		}
	}
	return b.result()
}

// ofLoader reports whether an event is of a register that loaders, and the EFI stub
// of Linux, measure into (CCMR 3 stands for PCR 8 to 15). Others, such as RTMR 3,
// are those of the running system.
func (l *Log) ofLoader(e *Event) bool {
	if l.Kind == TCG2 {
		return e.Register == 8 || e.Register == 9
	}
	return e.Register == 3
}

// fact is what all events about something agree on.
type fact struct {
	value    []byte
	disputed bool
}

func (f *fact) is(value []byte) {
	f.disputed = f.disputed || f.value != nil && !bytes.Equal(f.value, value)
	f.value = value
}

func (f *fact) get() []byte {
	if f.disputed {
		return nil
	}
	return f.value
}

// booted is a summary in the making.
type booted struct {
	Boot
	kernel, initrd fact
	// cmdline is the digest of the text from GRUB, options that of what the stub
	// was handed.
	cmdline, options fact
	files            map[string]*fact // digests of files by the path that GRUB gives
}

func (b *booted) result() Boot {
	if b.kernel.value != nil {
		b.Kernel = b.kernel.get()
	}
	b.Initrd = b.initrd.get()
	switch {
	case b.cmdline.disputed || b.options.disputed:
		b.Cmdline, b.CmdlineDigest = "", nil
	case b.options.value != nil:
		b.CmdlineDigest = b.options.value
	case b.cmdline.value != nil:
		b.CmdlineDigest = b.cmdline.value
	}
	return b.Boot
}

// efiGlobalVariable is 8be4df61-93ca-11d2-aa0d-00e098032b8c (UEFI 2.10, section 3.3).
var efiGlobalVariable = GUID{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}

func (b *booted) secureBoot(l *Log, e *Event) {
	v, err := ParseVariable(e.Data)
	if err != nil || v.Vendor != efiGlobalVariable || v.Name != "SecureBoot" || b.SecureBoot != nil || !l.DigestMatchesEvent(e) {
		return
	}
	on := len(v.Data) == 1 && v.Data[0] == 1
	b.SecureBoot = &on
}

// fixed reports whether an event of the register of images is no image: its data
// is short, of a form that no image has, and what was hashed.
func (l *Log) fixed(e *Event) bool {
	switch e.Type {
	case Separator:
		return len(e.Data) == 4 && l.DigestMatchesEvent(e)
	case EFIAction, Action:
		plain := len(e.Data) < 256 && bytes.IndexFunc(e.Data, func(r rune) bool { return r < ' ' || r > '~' }) < 0
		return plain && l.DigestMatchesEvent(e)
	case EFIGPTEvent, EFIGPTEvent2:
		return bytes.HasPrefix(e.Data, []byte("EFI PART")) && l.DigestMatchesEvent(e)
	}
	return false
}

func (b *booted) image(l *Log, e *Event, digest []byte) {
	if e.Type == PlatformConfigFlags {
		if text, ok := l.shimText(e); ok { // td-shim puts the command line here
			b.Cmdline = text
			b.cmdline.is(digest)
			return
		}
	}
	details, _ := e.Details()
	path := details.DevicePaths
	if path == nil && details.Text != nil {
		path = []string{*details.Text}
	}
	b.Images = append(b.Images, Image{Type: e.Type, Path: path, Digest: digest})
	b.Kernel = digest
}

// shimText is the command line in an event of td-shim: name of 16 bytes, length 4,
// then what was hashed (td-shim, td-shim-interface and td-layout at v0.8).
func (l *Log) shimText(e *Event) (string, bool) {
	if len(e.Data) < 20 || !bytes.HasPrefix(e.Data, []byte("td_payload_info\x00")) {
		return "", false
	}
	body := e.Data[20:]
	for _, d := range e.Digests {
		if !bytes.Equal(l.sum(d.Alg, body), d.Value) {
			return "", false
		}
	}
	text, _, _ := bytes.Cut(body, []byte{0})
	return string(text), true
}

// loader looks at what boot loaders and the EFI stub of Linux measure.
func (b *booted) loader(l *Log, e *Event, a Alg, digest []byte) {
	switch e.Type {
	case EventTag:
		if len(e.Data) >= 4 {
			b.stub(l, binary.LittleEndian.Uint32(e.Data), a, digest)
		}
	case IPL:
		text := firstText(e.Data)
		switch text {
		case "grub_linuxefi Kernel":
			b.kernel.is(digest)
		case "grub_linuxefi Initrd":
			b.initrd.is(digest)
		default:
			if b.files[text] == nil {
				b.files[text] = new(fact)
			}
			b.files[text].is(digest)
		}
		for _, prefix := range []string{"kernel_cmdline: ", "grub_kernel_cmdline "} {
			line, ok := strings.CutPrefix(text, prefix)
			if !ok || !bytes.Equal(l.sum(a, []byte(line)), digest) {
				continue
			}
			if b.cmdline.value == nil {
				b.Cmdline = line
			}
			b.cmdline.is(digest)
			path, _, _ := strings.Cut(line, " ")
			if file, ok := b.files[path]; ok {
				b.kernel.is(file.value)
				b.kernel.disputed = b.kernel.disputed || file.disputed
			}
		}
	}
}

// stub takes what the EFI stub measures. It leaves no text, but GRUB may have, of
// the same line or of one to which it adds the name of the kernel. Where it has one
// of another line, one of the two is not true.
func (b *booted) stub(l *Log, tag uint32, a Alg, digest []byte) {
	switch tag {
	case linuxInitrdTag:
		b.initrd.is(digest)
	case linuxOptionsTag:
		b.options.is(digest)
		if b.Cmdline == "" {
			return
		}
		for _, line := range []string{b.Cmdline, "BOOT_IMAGE=" + b.Cmdline} {
			for _, options := range [][]byte{LoadOptions(line), append(LoadOptions(line), 0, 0)} {
				if bytes.Equal(l.sum(a, options), digest) {
					b.Cmdline = line
					return
				}
			}
		}
		b.options.disputed = true
	}
}

func firstText(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

// LoadOptions is a command line as a boot loader hands it to the EFI stub of Linux,
// and as the stub measures it: UTF-16. Some loaders add a zero at the end.
func LoadOptions(cmdline string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(cmdline)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

// Claims are the claims "boot.*": secure_boot (bool), images (list of digest in hex,
// path and type), kernel, initrd and cmdline_digest (hex), cmdline (text). Those
// that the log does not tell are absent.
func (b Boot) Claims() map[string]any {
	out := map[string]any{}
	if b.SecureBoot != nil {
		out["secure_boot"] = *b.SecureBoot
	}
	images := make([]any, len(b.Images))
	for i, m := range b.Images {
		path := make([]any, len(m.Path))
		for j, p := range m.Path {
			path[j] = p
		}
		images[i] = map[string]any{"digest": hex.EncodeToString(m.Digest), "path": path, "type": m.Type.String()}
	}
	out["images"] = images
	for name, digest := range map[string][]byte{"kernel": b.Kernel, "initrd": b.Initrd, "cmdline_digest": b.CmdlineDigest} {
		if digest != nil {
			out[name] = hex.EncodeToString(digest)
		}
	}
	if b.Cmdline != "" {
		out["cmdline"] = b.Cmdline
	}
	return out
}
