// Package manifest describes a built guest image: which files it consists of,
// their digests, what they were made from, and the kernel command line they are
// measured with. The builder writes it next to the files; the host reads it
// before it launches anything, and the owner predicts a launch digest from it.
//
// A manifest proves nothing by itself: what a guest is, its launch measurement
// says. It lets an honest host notice a broken or mixed-up image early, and lets
// everybody name the input that differs when two measurements differ.
package manifest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/strictjson"
)

// Version is the only manifest version there is.
const Version = 1

// Formats of an initrd, by the kernel's names of them.
const (
	None = "none"
	LZ4  = "lz4"
	Zstd = "zstd"
)

// Compressions are the formats there are.
func Compressions() []string { return []string{None, LZ4, Zstd} }

// FileName is the manifest's name in an image directory.
const FileName = "manifest.json"

// Limits of a manifest and of the files it may name.
const (
	// MaxBytes bounds the manifest itself.
	MaxBytes = 1 << 20
	// MaxFileBytes bounds kernel, initrd and firmware, each.
	MaxFileBytes = 512 << 20
	maxDepth     = 6
	maxCmdline   = 2048 // COMMAND_LINE_SIZE of Linux on x86
)

// Manifest is one guest image.
type Manifest struct {
	// Version is [Version].
	Version int `json:"version"`
	// Architecture in Go's terms: amd64.
	Architecture string `json:"architecture"`
	// Kernel is the bzImage, unchanged from its package.
	Kernel File `json:"kernel"`
	// Initrd is the one cpio archive the guest runs from.
	Initrd Initrd `json:"initrd"`
	// Firmware is what the software TEE measures and QEMU starts with; absent
	// when the image leaves the choice to the host.
	Firmware *File `json:"firmware,omitempty"`
	// Cmdline is the kernel command line every launch begins with. What a
	// launch appends to it is measured too.
	Cmdline string `json:"cmdline"`
	// Agent is the program at /init.
	Agent Agent `json:"agent"`
	// Packages are the Debian packages that went in, by name.
	Packages []Package `json:"packages"`
	// Locked tells that every package is the one the lock file names.
	Locked bool `json:"locked"`
	// Inputs is the hex SHA-256 of everything the image was made from. Two
	// images with equal Inputs are equal.
	Inputs string `json:"inputs"`
}

// File is a file of the image directory.
type File struct {
	// Name of the file in the image directory, without a path.
	Name string `json:"file"`
	// SHA256 is 64 lower-case hexadecimal digits.
	SHA256 string `json:"sha256"`
	// Size in bytes.
	Size int64 `json:"size"`
	// Package and PackageVersion name the Debian package it comes from; empty
	// for files made here.
	Package        string `json:"package,omitempty"`
	PackageVersion string `json:"package_version,omitempty"`
}

// Initrd is the initial root file system.
type Initrd struct {
	File
	// Compression is one of [Compressions].
	Compression string `json:"compression"`
	// Files is the archive's content in archive order.
	Files []Entry `json:"files"`
}

// Entry is one object of the initrd.
type Entry struct {
	// Path is absolute.
	Path string `json:"path"`
	// Mode is the type and permission bits in octal, as stat(2) has them.
	Mode string `json:"mode"`
	// Size and SHA256 are a regular file's.
	Size   int64  `json:"size,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
	// Target is a symbolic link's.
	Target string `json:"target,omitempty"`
}

// Agent is the guest's PID 1.
type Agent struct {
	Version string `json:"version"`
	SHA256  string `json:"sha256"`
	Size    int64  `json:"size"`
}

// Package is a Debian binary package.
type Package struct {
	Name         string `json:"name"`
	Version      string `json:"version"`
	Architecture string `json:"architecture"`
	// SHA256 of the .deb file.
	SHA256 string `json:"sha256"`
}

// Parse reads a manifest strictly: unknown or repeated names, trailing data,
// unknown versions and file names that leave the image directory are errors that
// name the field.
func Parse(data []byte) (*Manifest, error) {
	var m Manifest
	if err := strictjson.Decode(data, &m, strictjson.Limits{Bytes: MaxBytes, Depth: maxDepth}); err != nil {
		return nil, fmt.Errorf("guest image manifest: %w", err)
	}
	if err := m.validate(); err != nil {
		return nil, fmt.Errorf("guest image manifest: %w", err)
	}
	return &m, nil
}

// Encode returns the manifest's file content: indented JSON with a newline.
func (m *Manifest) Encode() ([]byte, error) {
	if err := m.validate(); err != nil {
		return nil, fmt.Errorf("guest image manifest: %w", err)
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("guest image manifest: %w", err)
	}
	return append(data, '\n'), nil
}

// anew is what to do about an image that is not whole.
const anew = "the image is not whole: install it again, or make one with: coffer guest build"

// Load reads the manifest of an image directory. It does not read the image's
// files; see [Manifest.Check] and [Manifest.Read].
func Load(dir string) (*Manifest, error) {
	path := filepath.Join(dir, FileName)
	data, err := readBounded(path, MaxBytes)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("no guest image in %s: %w (make one with: coffer guest build)", dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read guest image manifest: %w", err)
	}
	m, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// Files returns the files of the image directory that the manifest names.
func (m *Manifest) Files() []File {
	files := []File{m.Kernel, m.Initrd.File}
	if m.Firmware != nil {
		files = append(files, *m.Firmware)
	}
	return files
}

// Check compares every file in dir with the manifest and reports all that are
// missing or differ.
func (m *Manifest) Check(dir string) error {
	var problems []error
	for _, f := range m.Files() {
		problems = append(problems, f.check(dir))
	}
	return errors.Join(problems...)
}

// Read returns the content of one of the manifest's files in dir after it has
// been compared with the manifest.
func (f File) Read(dir string) ([]byte, error) {
	file, err := f.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	return f.Content(file)
}

// Open opens one of the manifest's files in dir, for those who hand the very
// file on that they have read with Content: its name may later mean another.
func (f File) Open(dir string) (*os.File, error) {
	if err := f.validate("file"); err != nil {
		return nil, err
	}
	file, err := os.Open(filepath.Join(dir, f.Name))
	if err != nil {
		return nil, fmt.Errorf("guest image file: %w (%s)", err, anew)
	}
	return file, nil
}

// Content returns what r holds after it has been compared with the manifest.
func (f File) Content(r io.Reader) ([]byte, error) {
	data, err := bounded(r, f.Name, f.Size)
	if err != nil {
		return nil, fmt.Errorf("guest image file: %w (%s)", err, anew)
	}
	sum := sha256.Sum256(data)
	if err := f.compare(int64(len(data)), sum[:]); err != nil {
		return nil, err
	}
	return data, nil
}

func (f File) check(dir string) error {
	file, err := os.Open(filepath.Join(dir, f.Name))
	if err != nil {
		return fmt.Errorf("guest image file: %w (%s)", err, anew)
	}
	defer func() { _ = file.Close() }()
	sum := sha256.New()
	n, err := io.Copy(sum, io.LimitReader(file, f.Size+1))
	if err != nil {
		return fmt.Errorf("guest image file %s: %w", f.Name, err)
	}
	return f.compare(n, sum.Sum(nil))
}

func (f File) compare(size int64, sum []byte) error {
	switch {
	case size != f.Size:
		return fmt.Errorf("guest image file %s: the manifest says %d bytes, the file has %s (%s)",
			f.Name, f.Size, countBeyond(size, f.Size), anew)
	case hex.EncodeToString(sum) != f.SHA256:
		return fmt.Errorf("guest image file %s: the manifest says sha256 %s, the file has %x (%s)",
			f.Name, f.SHA256, sum, anew)
	}
	return nil
}

// countBeyond words a length that was read only to one byte past the limit.
func countBeyond(n, limit int64) string {
	if n > limit {
		return "more"
	}
	return fmt.Sprint(n)
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return bounded(f, path, limit)
}

func bounded(r io.Reader, name string, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: longer than the %d bytes expected", name, limit)
	}
	return data, nil
}

func (m *Manifest) validate() error {
	var p []error
	bad := func(field, expected string, got any) {
		p = append(p, fmt.Errorf("%s: expected %s, got %q", field, expected, fmt.Sprint(got)))
	}
	if m.Version != Version {
		return fmt.Errorf("version: expected %d, got %d (this program and the image are of different releases)", Version, m.Version)
	}
	if m.Architecture != "amd64" {
		bad("architecture", `"amd64"`, m.Architecture)
	}
	p = append(p, m.Kernel.validate("kernel"), m.Initrd.validate("initrd"))
	if m.Firmware != nil {
		p = append(p, m.Firmware.validate("firmware"))
	}
	names := map[string]bool{FileName: true}
	for _, f := range m.Files() {
		if names[f.Name] {
			bad("file", "a name used once", f.Name)
		}
		names[f.Name] = true
	}
	if !slices.Contains(Compressions(), m.Initrd.Compression) {
		bad("initrd.compression", fmt.Sprintf("one of %q", Compressions()), m.Initrd.Compression)
	}
	if len(m.Cmdline) == 0 || len(m.Cmdline) > maxCmdline || strings.ContainsFunc(m.Cmdline, notPrintable) {
		bad("cmdline", fmt.Sprintf("1 to %d printable ASCII characters", maxCmdline), m.Cmdline)
	}
	if !isDigest(m.Agent.SHA256) {
		bad("agent.sha256", "64 lower-case hexadecimal digits", m.Agent.SHA256)
	}
	if !isDigest(m.Inputs) {
		bad("inputs", "64 lower-case hexadecimal digits", m.Inputs)
	}
	for i, e := range m.Initrd.Files {
		if !strings.HasPrefix(e.Path, "/") || filepath.Clean(e.Path) != e.Path {
			bad(fmt.Sprintf("initrd.files[%d].path", i), "a clean absolute path", e.Path)
		}
	}
	for i, pkg := range m.Packages {
		if pkg.Name == "" || pkg.Version == "" || !isDigest(pkg.SHA256) {
			bad(fmt.Sprintf("packages[%d]", i), "name, version and sha256", pkg)
		}
	}
	return errors.Join(p...)
}

func (f File) validate(field string) error {
	switch {
	case f.Name == "" || f.Name == "." || f.Name == ".." || strings.ContainsAny(f.Name, "/\\") || strings.ContainsFunc(f.Name, notPrintable):
		return fmt.Errorf("%s.file: expected a plain file name, got %q", field, f.Name)
	case !isDigest(f.SHA256):
		return fmt.Errorf("%s.sha256: expected 64 lower-case hexadecimal digits, got %q", field, f.SHA256)
	case f.Size <= 0 || f.Size > MaxFileBytes:
		return fmt.Errorf("%s.size: expected 1 to %d, got %d", field, int64(MaxFileBytes), f.Size)
	}
	return nil
}

func isDigest(s string) bool {
	return len(s) == 2*sha256.Size && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'f')
	})
}

func notPrintable(r rune) bool { return r < ' ' || r > '~' }
