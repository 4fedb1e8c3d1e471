// Package debian gets binary packages from the machine's Debian archive and
// reads the files in them. Nothing is installed and no script of a package runs.
package debian

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// ErrNotAvailable is what errors wrap when the archive does not have a package,
// or not in the version asked for.
var ErrNotAvailable = errors.New("not in the package archive")

var errContent = errors.New("the same version with another content; do not use it before you know why")

// Archive downloads packages through apt and caches them by their SHA-256. It is
// safe for concurrent use; two processes may share a cache directory.
type Archive struct {
	cache string
	log   *slog.Logger
	run   func(ctx context.Context, dir, name string, args ...string) ([]byte, error)

	mu sync.Mutex
	// refreshed is set once the package lists have been updated: never twice.
	refreshed bool
}

// NewArchive returns an archive that caches in dir, which is created.
func NewArchive(dir string, log *slog.Logger) (*Archive, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("package cache: %w", err)
	}
	return &Archive{cache: dir, log: log, run: run}, nil
}

// Newest returns the newest version of the named package that apt would
// install.
func (a *Archive) Newest(ctx context.Context, name string) (Package, error) {
	s, err := a.newest(ctx, name)
	if err != nil {
		return Package{}, err
	}
	return s.pkg(), nil
}

// Follow returns the newest version of the package that the meta package meta
// depends on and whose name starts with prefix: Debian's kernels have their
// version in the name, and a meta package points to the newest.
func (a *Archive) Follow(ctx context.Context, meta, prefix string) (Package, error) {
	s, err := a.newest(ctx, meta)
	if err != nil {
		return Package{}, err
	}
	name, ok := s.dependency(prefix)
	if !ok {
		return Package{}, fmt.Errorf("package %s %s depends on no package called %s*", meta, s["version"], prefix)
	}
	return a.Newest(ctx, name)
}

// Fetch returns the path of the .deb whose SHA-256 is p.SHA256, from the cache or
// from the archive. Errors wrap [ErrNotAvailable] when the archive has another
// version only.
func (a *Archive) Fetch(ctx context.Context, p Package) (string, error) {
	path := filepath.Join(a.cache, p.SHA256+".deb")
	if sum, err := hashFile(path); err == nil && sum == p.SHA256 {
		return path, nil
	}
	err := a.download(ctx, p, path)
	if err == nil {
		return path, nil
	}
	if errors.Is(err, errContent) || ctx.Err() != nil {
		return "", err
	}
	// Either the lists do not have this version, or they do and the archive no longer
	// has the file: newer lists settle both.
	if a.refresh(ctx) {
		if err = a.download(ctx, p, path); err == nil {
			return path, nil
		}
	}
	if listErr := a.find(ctx, p); listErr != nil {
		return "", listErr
	}
	return "", err
}

// find tells whether the lists have the package in this very version.
func (a *Archive) find(ctx context.Context, p Package) error {
	if _, err := a.show(ctx, p.Name, func(s stanza) bool { return s["version"] == p.Version }); err != nil {
		return fmt.Errorf("package %s: %w", p, err)
	}
	return nil
}

func (a *Archive) newest(ctx context.Context, name string) (stanza, error) {
	all := func(stanza) bool { return true }
	found, err := a.show(ctx, name, all, "--no-all-versions")
	if errors.Is(err, ErrNotAvailable) && a.refresh(ctx) {
		found, err = a.show(ctx, name, all, "--no-all-versions")
	}
	if err != nil {
		return nil, fmt.Errorf("package %s: %w", name, err)
	}
	return found[0], nil
}

// show returns the paragraphs of a package that fit; never an empty list
// without an error.
func (a *Archive) show(ctx context.Context, name string, fits func(stanza) bool, args ...string) ([]stanza, error) {
	out, err := a.run(ctx, "", "apt-cache", append(append([]string{"show"}, args...), "--", name)...)
	if err != nil {
		if errors.Is(err, exec.ErrNotFound) || ctx.Err() != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w (%w)", ErrNotAvailable, err)
	}
	stanzas, err := parseStanzas(bytes.NewReader(out))
	if err != nil {
		return nil, err
	}
	var found []stanza
	var versions []string
	for _, s := range stanzas {
		// An installed package of no archive has no Filename.
		if s["package"] != name || s["filename"] == "" {
			continue
		}
		versions = append(versions, s["version"])
		if fits(s) {
			found = append(found, s)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w; there is: %s", ErrNotAvailable, orNone(versions))
	}
	return found, nil
}

// Refresh updates the package lists if this process may. It does nothing if
// that was done before.
func (a *Archive) Refresh(ctx context.Context) { a.refresh(ctx) }

// refresh updates the package lists, once, if this process may. It tells
// whether they are now newer than before.
func (a *Archive) refresh(ctx context.Context) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.refreshed || os.Geteuid() != 0 {
		return false
	}
	a.refreshed = true
	a.log.InfoContext(ctx, "updating the package lists", "command", "apt-get update")
	if _, err := a.run(ctx, "", "apt-get", "--quiet=2", "update"); err != nil {
		a.log.WarnContext(ctx, "the package lists could not be updated", "error", err)
		return false
	}
	return true
}

func (a *Archive) download(ctx context.Context, p Package, path string) error {
	dir, err := os.MkdirTemp(a.cache, ".download-")
	if err != nil {
		return fmt.Errorf("package cache: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	a.log.InfoContext(ctx, "downloading", "package", p.String())
	// As root apt would switch to its own user for the download, who cannot write here; it
	// would do it as root anyway, with a warning.
	if _, err := a.run(ctx, dir, "apt-get", "--quiet=2", "--option=APT::Sandbox::User=root", "download", p.String()); err != nil {
		return fmt.Errorf("download %s: %w", p, err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return err
	}
	if len(files) != 1 {
		return fmt.Errorf("download %s: expected one file, got %d", p, len(files))
	}
	sum, err := hashFile(files[0])
	if err != nil {
		return err
	}
	if sum != p.SHA256 {
		return fmt.Errorf("download %s: expected SHA-256 %s, got %s: %w", p, p.SHA256, sum, errContent)
	}
	if err := os.Chmod(files[0], 0o644); err != nil {
		return err
	}
	return os.Rename(files[0], path)
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// run executes a program with the C locale, in dir or the current directory.
func run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, lastLines(stderr.String()))
	}
	return out, nil
}

// lastLines keeps the end of a program's error output.
func lastLines(s string) string {
	const limit = 500
	s = strings.TrimSpace(s)
	if len(s) > limit {
		s = "…" + s[len(s)-limit:]
	}
	return strings.ReplaceAll(s, "\n", "; ")
}

func orNone(versions []string) string {
	if len(versions) == 0 {
		return "no version of it"
	}
	return strings.Join(versions, ", ")
}
