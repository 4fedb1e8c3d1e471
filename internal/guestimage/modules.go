package guestimage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path"
	"strings"

	"github.com/coffer-project/coffer/internal/guestimage/debian"
	"github.com/coffer-project/coffer/internal/guestimage/kmod"
)

const maxModuleBytes = 64 << 20

// modules are a kernel package's modules by canonical name.
type modules struct {
	release string
	files   debian.Tree
	paths   map[string]string
	builtin map[string]bool
	loaded  map[string][]byte
	strip   bool
}

func newModules(tree debian.Tree, strip bool) (*modules, error) {
	m := &modules{strip: strip, files: tree, paths: map[string]string{}, builtin: map[string]bool{}, loaded: map[string][]byte{}}
	for name, f := range tree {
		switch {
		case path.Base(name) == "modules.builtin":
			m.release = path.Base(path.Dir(name))
			for line := range strings.Lines(string(f.Data)) {
				m.builtin[kmod.Canonical(strings.TrimSuffix(path.Base(strings.TrimSpace(line)), ".ko"))] = true
			}
		case strings.HasSuffix(name, ".ko.xz"):
			m.paths[kmod.Canonical(strings.TrimSuffix(path.Base(name), ".ko.xz"))] = name
		}
	}
	if m.release == "" {
		return nil, errors.New("has no file modules.builtin")
	}
	return m, nil
}

func (m *modules) file(name string) string {
	return strings.TrimSuffix(path.Base(m.paths[name]), ".xz")
}

func (m *modules) list(names []string) []byte {
	var b bytes.Buffer
	for _, name := range names {
		b.WriteString(m.file(name) + "\n")
	}
	return b.Bytes()
}

// depends decompresses a module on the way, so that what is ordered is also
// what is stored.
func (m *modules) depends(ctx context.Context) func(string) ([]string, bool, error) {
	return func(name string) ([]string, bool, error) {
		file, ok := m.paths[name]
		if !ok {
			if m.builtin[name] {
				return nil, false, nil
			}
			return nil, false, fmt.Errorf("kernel %s has no module %s", m.release, name)
		}
		data, err := unxz(ctx, m.files[file].Data)
		if err != nil {
			return nil, false, fmt.Errorf("%s: %w", file, err)
		}
		info, err := kmod.Read(data)
		if err != nil {
			return nil, false, fmt.Errorf("%s: %w", file, err)
		}
		if release, _, _ := strings.Cut(info.Vermagic, " "); release != m.release {
			return nil, false, fmt.Errorf("%s is made for kernel %q, expected %q", file, release, m.release)
		}
		if m.strip {
			if data, err = kmod.StripSignature(data); err != nil {
				return nil, false, fmt.Errorf("%s: %w", file, err)
			}
		}
		m.loaded[name] = data
		return info.Depends, true, nil
	}
}

// unxz decompresses with Debian's xz.
func unxz(ctx context.Context, data []byte) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "xz", "--decompress", "--stdout", "--single-stream", "--no-warn")
	cmd.Stdin = bytes.NewReader(data)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("xz: %w: %s (xz is in Debian's package xz-utils)", err, strings.TrimSpace(stderr.String()))
	}
	if len(out) > maxModuleBytes {
		return nil, fmt.Errorf("decompresses to %d bytes, at most %d are taken", len(out), maxModuleBytes)
	}
	return out, nil
}
