package boot

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Where the guest image keeps kernel modules: uncompressed files, and a list
// of their names in load order, one per line.
const (
	ModuleList = "/usr/lib/coffer/modules.list"
	ModuleDir  = "/usr/lib/coffer/modules"
)

// parseModules reads a module list. Names carry no directory; the suffix .ko
// may be left out; empty lines and lines with # are skipped.
func parseModules(raw []byte) ([]string, error) {
	var names []string
	sc := bufio.NewScanner(bytes.NewReader(raw))
	for sc.Scan() {
		name := strings.TrimSpace(sc.Text())
		if name == "" || strings.HasPrefix(name, "#") {
			continue
		}
		if strings.ContainsAny(name, "/ \t") {
			return nil, fmt.Errorf("module list: %q is not a file name", name)
		}
		if !strings.HasSuffix(name, ".ko") {
			name += ".ko"
		}
		names = append(names, name)
	}
	return names, sc.Err()
}

// loadModules loads every module of the list. One that is loaded already, or
// built in, is as good.
func loadModules(ctx context.Context) error {
	raw, err := os.ReadFile(ModuleList)
	if err != nil {
		return err
	}
	names, err := parseModules(raw)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := loadModule(filepath.Join(ModuleDir, name)); err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("finit_module: %w", err)
	}
	return nil
}
