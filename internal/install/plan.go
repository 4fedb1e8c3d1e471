package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/coffer-project/coffer/internal/guestimage/manifest"
	"github.com/coffer-project/coffer/internal/install/conffile"
)

// Plan is an installation before anything is written. Close it.
type Plan struct {
	// Containerd is what was found on the node.
	Containerd Containerd `json:"containerd"`
	// Handlers that will be there.
	Handlers []string `json:"handlers"`
	// Directories to make, and Files to write, in this order.
	Directories []string `json:"directories"`
	Files       []File   `json:"files"`
	// Remove are files of an earlier installation that go.
	Remove []string `json:"remove,omitempty"`
	// Edit is the change of containerd's main file; nil: none.
	Edit *Edit `json:"edit,omitempty"`
	// Notes are for people: what was left out, and why.
	Notes []string `json:"notes,omitempty"`

	options Options
	node    *node
	old     *Record
	before  dumped
}

// File is a file to write.
type File struct {
	Path string `json:"path"`
	// Mode in octal digits.
	Mode   string `json:"mode,omitempty"`
	Size   int64  `json:"size,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
	// Target makes it a symbolic link.
	Target string `json:"target,omitempty"`
	// Text is the content of a configuration.
	Text string `json:"text,omitempty"`
	// Same says that the file is there already.
	Same bool `json:"same,omitempty"`

	mode   os.FileMode
	source string
}

// Edit is a change of containerd's main file.
type Edit struct {
	Path   string `json:"path"`
	Import string `json:"import"`
	// Create says that there is none yet.
	Create bool `json:"create,omitempty"`

	before, after []byte
}

// Prepare looks at the node and the sources and says what would be written. An
// error says why nothing will be.
func Prepare(ctx context.Context, o Options) (*Plan, error) {
	o, err := o.prepare()
	if err != nil {
		return nil, err
	}
	n, err := o.open()
	if err != nil {
		return nil, err
	}
	p := &Plan{options: o, node: n}
	if err := p.fill(ctx); err != nil {
		_ = n.Close()
		return nil, fmt.Errorf("install: %w", err)
	}
	return p, nil
}

// Close releases the node's file system.
func (p *Plan) Close() error { return p.node.Close() }

func (p *Plan) fill(ctx context.Context) error {
	o, n := p.options, p.node
	var err error
	if p.old, err = n.load(); err != nil {
		return err
	}
	c, err := discover(ctx, o, n)
	if err != nil {
		return err
	}
	p.Containerd = *c
	if err := c.sandboxer(o.Sandboxer); err != nil {
		return err
	}
	handlers, ovmf, notes, err := o.choose(n)
	if err != nil {
		return err
	}
	p.Notes = notes
	if err := p.programs(); err != nil {
		return err
	}
	guest, err := p.guest()
	if err != nil {
		return err
	}
	for _, h := range handlers {
		p.Handlers = append(p.Handlers, h.Name)
		text, err := h.settings(o, guest, ovmf[h.TEE])
		if err != nil {
			return err
		}
		p.text(path.Join(o.Prefix, "etc", h.Name+".toml"), text)
	}
	if p.before, err = p.dump(ctx); err != nil {
		return fmt.Errorf("containerd does not read its own configuration as it is now: %w (repair it first)", err)
	}
	base, err := c.section(n, p.before)
	if err != nil {
		return err
	}
	text, err := dropIn(o, c, handlers, base)
	if err != nil {
		return err
	}
	if c.Template {
		text = slices.Concat([]byte("{{ template \"base\" . }}\n"), text)
	}
	p.text(c.DropIn, text)
	if base != nil {
		p.Files[len(p.Files)-1].mode = 0o600 // it may repeat credentials of registries
	}
	if err := p.edit(c); err != nil {
		return err
	}
	return p.compare()
}

func (p *Plan) text(name string, text []byte) {
	p.Files = append(p.Files, File{Path: name, mode: 0o644, Size: int64(len(text)), SHA256: digestOf(text), Text: string(text)})
}

// programs adds the shim and this program, and a link to the shim on containerd's
// PATH. Before 2.0 it finds shims there only; from 2.0 on it starts them by the
// handler's runtime_path, but when it is started anew looks on its PATH for that of
// each container that is not a sandbox, and forgets those whose shim it does not
// find (core/runtime/v2/shim_load.go of containerd 2.2.9 and 2.4.2).
func (p *Plan) programs() error {
	bin := path.Join(p.options.Prefix, "bin")
	for name, source := range map[string]string{ShimName: p.options.Shim, "coffer": p.options.Program} {
		f, err := sourceFile(source, path.Join(bin, name), 0o755)
		if err != nil {
			return fmt.Errorf("program %s: %w", name, err)
		}
		p.Files = append(p.Files, f)
	}
	slices.SortFunc(p.Files, func(a, b File) int { return bytes.Compare([]byte(b.Path), []byte(a.Path)) })
	p.Files = append(p.Files, File{Path: "/usr/local/bin/" + ShimName, Target: path.Join(bin, ShimName)})
	return nil
}

func sourceFile(source, target string, mode os.FileMode) (File, error) {
	f, err := os.Open(source)
	if err != nil {
		return File{}, err
	}
	defer f.Close() //nolint:errcheck // only read
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return File{}, fmt.Errorf("%s: expected a regular file", source)
	}
	h := sha256.New()
	size, err := io.Copy(h, f)
	if err != nil {
		return File{}, err
	}
	return File{Path: target, mode: mode, Size: size, SHA256: hex.EncodeToString(h.Sum(nil)), source: source}, nil
}

// guest adds the files of the guest image, in a directory that is named by what
// it was made from: a handler's configuration changes from one whole image to
// another.
func (p *Plan) guest() (string, error) {
	m, err := manifest.Load(p.options.GuestImage)
	if err != nil {
		return "", err
	}
	text, err := m.Encode()
	if err != nil {
		return "", err
	}
	dir := path.Join(p.options.Prefix, "guest", digestOf(text)[:16])
	files := []manifest.File{m.Kernel, m.Initrd.File}
	if m.Firmware != nil {
		files = append(files, *m.Firmware)
	}
	for _, want := range files {
		f, err := sourceFile(filepath.Join(p.options.GuestImage, want.Name), path.Join(dir, want.Name), 0o644)
		if err != nil {
			return "", fmt.Errorf("guest image: %w", err)
		}
		if f.SHA256 != want.SHA256 {
			return "", fmt.Errorf("guest image %s: %s has digest %s, its manifest says %s (build the image anew: coffer guest build --force)", p.options.GuestImage, want.Name, f.SHA256, want.SHA256)
		}
		p.Files = append(p.Files, f)
	}
	f, err := sourceFile(filepath.Join(p.options.GuestImage, manifest.FileName), path.Join(dir, manifest.FileName), 0o644)
	p.Files = append(p.Files, f)
	return dir, err
}

// edit plans the import.
func (p *Plan) edit(c *Containerd) error {
	if c.Import == "" {
		return nil
	}
	data, there, err := readConfig(p.node, c.Config)
	if err != nil {
		return err
	}
	e := &Edit{Path: c.Config, Import: c.Import, Create: !there, before: data}
	if info, err := p.node.Lstat(rel(c.Config)); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("containerd's configuration %s is a link, and does not import %s: this program does not edit what a link leads to (add the import there)", c.Config, c.DropIn)
	}
	base := data
	if !there {
		base = fmt.Appendf(nil, "version = %d\n", c.ConfigVersion)
	}
	if e.after, err = conffile.Add(base, c.Import); err != nil {
		return fmt.Errorf("containerd's configuration %s: %w", c.Config, err)
	}
	p.Edit = e
	return nil
}

// compare finds what is there already, what is in the way, and which
// directories are missing.
func (p *Plan) compare() error {
	var problems []error
	made := make(map[string]bool)
	for i := range p.Files {
		f := &p.Files[i]
		if f.mode != 0 {
			f.Mode = fmt.Sprintf("%04o", f.mode)
		}
		problems = append(problems, p.inPlace(f))
		dirs, err := p.node.missing(path.Dir(f.Path))
		problems = append(problems, err)
		for _, d := range dirs {
			if !made[d] {
				made[d] = true
				p.Directories = append(p.Directories, d)
			}
		}
	}
	if p.Edit != nil {
		dirs, err := p.node.missing(path.Dir(p.Edit.Path))
		problems = append(problems, err)
		for _, d := range dirs {
			if !made[d] {
				made[d] = true
				p.Directories = append(p.Directories, d)
			}
		}
	}
	if p.old != nil {
		for _, f := range p.old.Files {
			if !slices.ContainsFunc(p.Files, func(n File) bool { return n.Path == f.Path }) {
				p.Remove = append(p.Remove, f.Path)
			}
		}
	}
	return errors.Join(problems...)
}

// inPlace judges what is in the place of a file.
func (p *Plan) inPlace(f *File) error {
	there, err := p.node.exists(f.Path)
	if err != nil || !there {
		return err
	}
	ours := p.old.file(f.Path)
	if ours == nil {
		return fmt.Errorf("%s is there and was not written by coffer install (move it away)", f.Path)
	}
	if f.Target != "" {
		target, err := p.node.Readlink(rel(f.Path))
		f.Same = err == nil && target == f.Target
		if err != nil || target != ours.Target {
			return p.changed(f)
		}
		return nil
	}
	sum, err := p.node.digest(f.Path)
	if err != nil {
		return err
	}
	f.Same = sum == f.SHA256
	if !f.Same && !slices.Contains(ours.SHA256, sum) {
		return p.changed(f)
	}
	return nil
}

func (p *Plan) changed(f *File) error {
	if p.options.Replace {
		p.Notes = append(p.Notes, "replaces "+f.Path+", which was changed since it was installed")
		return nil
	}
	return fmt.Errorf("%s was changed since it was installed (--replace overwrites it)", f.Path)
}
