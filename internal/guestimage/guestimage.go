// Package guestimage builds the guest image: kernel, one deterministic initrd
// and a manifest, from Debian packages named in a recipe and a static agent
// binary. The same inputs give the same bytes on every machine: nothing of the
// building machine (time, user, umask, locale, directory order, host name)
// reaches the output.
//
// The packages are downloaded with apt-get, whose archive keys are trusted for
// a first lock; from then on the lock file's SHA-256 decides. They are unpacked,
// never installed, and none of their scripts run.
package guestimage

import (
	"context"
	"log/slog"

	"github.com/coffer-project/coffer/internal/guestimage/manifest"
)

// Options say what [Build] makes and from what.
type Options struct {
	// OutDir receives vmlinuz, initrd.img, firmware.bin and manifest.json. It is
	// created when it is missing; other files in it are left alone.
	OutDir string
	// CacheDir keeps downloaded packages, named by their SHA-256.
	CacheDir string
	// Agent is the path of the static agent binary that becomes /init.
	Agent string
	// AgentVersion is written to the manifest.
	AgentVersion string
	// Recipe is the recipe's text (TOML); nil takes the one built into this
	// program.
	Recipe []byte
	// Lock is the lock file's text; nil takes the one built into this program.
	Lock []byte
	// Locked makes it an error when the archive no longer has a locked package.
	// Without it the newest one is taken, with a warning, and the manifest says
	// locked: false.
	Locked bool
	// UpdateLock ignores the lock file's versions and takes the newest packages;
	// Result.Lock is then what the lock file should become.
	UpdateLock bool
	// Force builds even when OutDir already holds the image of these inputs.
	Force bool
	// Logger receives progress (Info) and departures from the lock (Warn).
	Logger *slog.Logger
}

// Result is a built image.
type Result struct {
	Manifest *manifest.Manifest
	// UpToDate tells that OutDir already held this image and nothing was written.
	UpToDate bool
	// Lock is a lock file that names exactly the packages used.
	Lock []byte
}

// Build makes the image. Files appear in OutDir complete or not at all, the
// manifest last. A cancelled context ends it between steps.
func Build(ctx context.Context, o Options) (*Result, error) {
	b, err := newBuilder(o)
	if err != nil {
		return nil, err
	}
	return b.build(ctx)
}
