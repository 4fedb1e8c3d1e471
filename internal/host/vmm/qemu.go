package vmm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// DefaultBinary is the emulator's name, looked up in PATH.
const DefaultBinary = "qemu-system-x86_64"

// versionTimeout bounds `qemu --version`, which answers in milliseconds.
const versionTimeout = 10 * time.Second

// QEMU is an installed emulator.
type QEMU struct {
	// Path of the program.
	Path string
	// Version is the first line of --version.
	Version      string
	Major, Minor int
}

var versionRE = regexp.MustCompile(`^QEMU emulator version (\d{1,4})\.(\d{1,4})[.\d]*`)

// FindQEMU looks for the emulator (binary: a name or path; empty is
// DefaultBinary) and asks its version.
func FindQEMU(ctx context.Context, binary string) (QEMU, error) {
	if binary == "" {
		binary = DefaultBinary
	}
	path, err := exec.LookPath(binary)
	if err != nil {
		return QEMU{}, fmt.Errorf("QEMU: %w (install it, on Debian: apt-get install qemu-system-x86; or correct its path where it is configured)", err)
	}
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Stdout = &capped{buffer: &out, left: 4096}
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return QEMU{}, fmt.Errorf("%s --version: %w", path, err)
	}
	return parseVersion(path, out.String())
}

func parseVersion(path, out string) (QEMU, error) {
	line, _, _ := strings.Cut(out, "\n")
	match := versionRE.FindStringSubmatch(line)
	if match == nil {
		return QEMU{}, fmt.Errorf("%s --version: expected “QEMU emulator version N.N…”, got %.80q (is it QEMU?)", path, line)
	}
	// The expression admits four digits: no overflow.
	major, _ := strconv.Atoi(match[1])
	minor, _ := strconv.Atoi(match[2])
	return QEMU{Path: path, Version: strings.TrimSpace(line), Major: major, Minor: minor}, nil
}

// Supports says whether the emulator has what the machine needs.
func (q QEMU) Supports(m *Machine) error {
	if m.Confidential == nil {
		return nil
	}
	major, minor := m.Confidential.minimum()
	if q.Major > major || q.Major == major && q.Minor >= minor {
		return nil
	}
	return fmt.Errorf("%s: machine %q: a %s guest needs QEMU %d.%d or newer, this is %d.%d (install a newer one, or use the software TEE)",
		q.Path, m.Name, m.Confidential.id(), major, minor, q.Major, q.Minor)
}

// seaBIOS is where distributions put the firmware of QEMU's PC machines.
var seaBIOS = [...]string{
	"/usr/share/seabios/bios-256k.bin",
	"/usr/share/qemu/bios-256k.bin",
	"/usr/share/qemu-kvm/bios-256k.bin",
	"/usr/local/share/qemu/bios-256k.bin",
}

// FindSeaBIOS returns the path of SeaBIOS, the firmware of machines that no
// hardware measures. It is named on the command line rather than left to the
// emulator's search, so that what is measured is what runs.
func FindSeaBIOS() (string, error) {
	for _, path := range seaBIOS {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("SeaBIOS: %w", err)
		}
	}
	return "", fmt.Errorf("SeaBIOS: none of %s exists (on Debian: apt-get install seabios)", strings.Join(seaBIOS[:], ", "))
}

// capped is a writer that keeps the first bytes and drops the rest. (An
// error would stop the copy and block the program that writes.)
type capped struct {
	buffer *bytes.Buffer
	left   int
}

func (c *capped) Write(p []byte) (int, error) {
	n := min(len(p), c.left)
	c.buffer.Write(p[:n])
	c.left -= n
	return len(p), nil
}
