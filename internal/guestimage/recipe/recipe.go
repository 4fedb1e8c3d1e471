// Package recipe reads what a guest image is made of: the recipe (what goes in)
// and the lock file (from exactly which packages).
package recipe

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/coffer-project/coffer/internal/guestimage/manifest"
)

// Version is the only recipe version there is.
const Version = 1

const maxBytes = 256 << 10

// Recipe is the parsed recipe.
type Recipe struct {
	// Version is [Version].
	Version int `toml:"version"`
	// Cmdline is the kernel command line, one parameter each.
	Cmdline []string `toml:"cmdline"`
	// Compression of the initrd: one of [manifest.Compressions].
	Compression string `toml:"compression"`
	// MaxInitrd is the size in bytes above which the build fails.
	MaxInitrd int64 `toml:"max_initrd"`

	Kernel      Kernel      `toml:"kernel"`
	Firmware    *Firmware   `toml:"firmware"`
	Modules     Modules     `toml:"modules"`
	Libraries   Libraries   `toml:"libraries"`
	Programs    []Program   `toml:"program"`
	Directories []Directory `toml:"directory"`
	Files       []File      `toml:"file"`
	Links       []Link      `toml:"link"`
	Devices     []Device    `toml:"device"`
}

// Kernel says where the kernel comes from.
type Kernel struct {
	// Meta is the meta package that depends on the newest kernel package, whose
	// name starts with Prefix.
	Meta   string `toml:"meta"`
	Prefix string `toml:"prefix"`
	// Image is the pattern of the bzImage in that package.
	Image string `toml:"image"`
}

// Firmware is the machine firmware the image is measured with.
type Firmware struct {
	Package string `toml:"package"`
	Path    string `toml:"path"`
}

// Modules are kernel modules by name; what they depend on comes along.
type Modules struct {
	// Dir is where they go in the guest.
	Dir string `toml:"dir"`
	// BaseList and Base: loaded at every boot.
	BaseList string   `toml:"base_list"`
	Base     []string `toml:"base"`
	// TEEList and TEE: loaded where the machine has the hardware for them.
	TEEList string   `toml:"tee_list"`
	TEE     []string `toml:"tee"`
	// DiskList and Disk: loaded when a disk is used.
	DiskList string   `toml:"disk_list"`
	Disk     []string `toml:"disk"`
	// MemoryList and Memory: loaded where free memory is given back to the host.
	// Both may be absent.
	MemoryList string   `toml:"memory_list"`
	Memory     []string `toml:"memory"`
	// StripSignatures takes the modules' signatures off.
	StripSignatures bool `toml:"strip_signatures"`
}

// Libraries says where shared libraries come from and go to.
type Libraries struct {
	// Packages to look in. Each must turn out to be needed.
	Packages []string `toml:"packages"`
	// Dirs of the packages to look in, in order.
	Dirs []string `toml:"dirs"`
	// Dest is where they go in the guest.
	Dest string `toml:"dest"`
	// Stubs are libraries, by the name that programs ask for, whose functions no
	// program calls in the guest: ones that do nothing take their place.
	Stubs []string `toml:"stubs"`
}

// Program is a program of a package, with the libraries it needs.
type Program struct {
	Package string `toml:"package"`
	Path    string `toml:"path"`
	Dest    string `toml:"dest"`
}

// Directory is a directory; parents need an entry of their own.
type Directory struct {
	Path string `toml:"path"`
	Mode uint32 `toml:"mode"`
}

// File is a file whose content is in the recipe.
type File struct {
	Path    string `toml:"path"`
	Mode    uint32 `toml:"mode"`
	Content string `toml:"content"`
}

// Link is a symbolic link.
type Link struct {
	Path   string `toml:"path"`
	Target string `toml:"target"`
}

// Device is a character device.
type Device struct {
	Path  string `toml:"path"`
	Mode  uint32 `toml:"mode"`
	Major uint32 `toml:"major"`
	Minor uint32 `toml:"minor"`
}

// Parse reads a recipe. Unknown keys are errors; all problems are reported.
func Parse(data []byte) (*Recipe, error) {
	if len(data) > maxBytes {
		return nil, fmt.Errorf("recipe: %d bytes, at most %d are read", len(data), maxBytes)
	}
	var r Recipe
	meta, err := toml.NewDecoder(bytes.NewReader(data)).Decode(&r)
	if err != nil {
		return nil, fmt.Errorf("recipe: %w", err)
	}
	var problems []error
	for _, key := range meta.Undecoded() {
		problems = append(problems, fmt.Errorf("%s: unknown key", key))
	}
	problems = append(problems, r.validate()...)
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("recipe: %w", err)
	}
	return &r, nil
}

// PackageNames returns the names of every package the recipe asks for, in the
// recipe's order and once each. The kernel's is its meta package.
func (r *Recipe) PackageNames() []string {
	names := []string{r.Kernel.Meta}
	if r.Firmware != nil {
		names = append(names, r.Firmware.Package)
	}
	for _, p := range r.Programs {
		names = append(names, p.Package)
	}
	names = append(names, r.Libraries.Packages...)
	seen := map[string]bool{}
	return slices.DeleteFunc(names, func(name string) bool {
		old := seen[name]
		seen[name] = true
		return old
	})
}

func (r *Recipe) validate() []error {
	var p []error
	bad := func(field, expected string, got any) {
		p = append(p, fmt.Errorf("%s: expected %s, got %q", field, expected, fmt.Sprint(got)))
	}
	if r.Version != Version {
		bad("version", fmt.Sprint(Version), r.Version)
	}
	for i, param := range r.Cmdline {
		if param == "" || strings.ContainsFunc(param, func(c rune) bool { return c <= ' ' || c > '~' }) {
			bad(fmt.Sprintf("cmdline[%d]", i), "one parameter of printable ASCII without spaces", param)
		}
	}
	if len(r.Cmdline) == 0 {
		bad("cmdline", "at least one parameter", "none")
	}
	if !slices.Contains(manifest.Compressions(), r.Compression) {
		bad("compression", fmt.Sprintf("one of %q", manifest.Compressions()), r.Compression)
	}
	if r.MaxInitrd <= 0 {
		bad("max_initrd", "a size in bytes", r.MaxInitrd)
	}
	required := func(field, value string) {
		if value == "" {
			bad(field, "a value", "")
		}
	}
	required("kernel.meta", r.Kernel.Meta)
	required("kernel.prefix", r.Kernel.Prefix)
	required("kernel.image", r.Kernel.Image)
	required("modules.dir", r.Modules.Dir)
	required("modules.base_list", r.Modules.BaseList)
	required("modules.tee_list", r.Modules.TEEList)
	required("modules.disk_list", r.Modules.DiskList)
	if len(r.Modules.Memory) > 0 {
		required("modules.memory_list", r.Modules.MemoryList)
	}
	if r.Firmware != nil {
		required("firmware.package", r.Firmware.Package)
		required("firmware.path", r.Firmware.Path)
	}
	if len(r.Programs) > 0 {
		required("libraries.dest", r.Libraries.Dest)
	}
	paths := map[string]bool{}
	guestPath := func(field, name string) {
		if name == "" || path.IsAbs(name) || path.Clean(name) != name || strings.HasPrefix(name, "..") {
			bad(field, "a clean path without a leading slash", name)
		}
		if paths[name] {
			bad(field, "a path used once", name)
		}
		paths[name] = true
	}
	mode := func(field string, m uint32) {
		if m == 0 || m > 0o7777 {
			bad(field, "permission bits", fmt.Sprintf("%#o", m))
		}
	}
	for i, name := range r.Libraries.Stubs {
		if name == "" || path.Base(name) != name {
			bad(fmt.Sprintf("libraries.stubs[%d]", i), "a library's name without a path", name)
		}
	}
	for i, v := range r.Programs {
		required(fmt.Sprintf("program[%d].package", i), v.Package)
		required(fmt.Sprintf("program[%d].path", i), v.Path)
		guestPath(fmt.Sprintf("program[%d].dest", i), v.Dest)
	}
	for i, v := range r.Directories {
		guestPath(fmt.Sprintf("directory[%d].path", i), v.Path)
		mode(fmt.Sprintf("directory[%d].mode", i), v.Mode)
	}
	for i, v := range r.Files {
		guestPath(fmt.Sprintf("file[%d].path", i), v.Path)
		mode(fmt.Sprintf("file[%d].mode", i), v.Mode)
	}
	for i, v := range r.Links {
		guestPath(fmt.Sprintf("link[%d].path", i), v.Path)
		required(fmt.Sprintf("link[%d].target", i), v.Target)
	}
	for i, v := range r.Devices {
		guestPath(fmt.Sprintf("device[%d].path", i), v.Path)
		mode(fmt.Sprintf("device[%d].mode", i), v.Mode)
	}
	return p
}
