// Package demoroot makes the root file systems of the demo's and the
// end-to-end tests' images: Debian's static busybox with its applets, the files
// a program expects in /etc, and an application with a marker that must never
// be readable outside the guest.
package demoroot

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// busyboxPaths is where Debian's package busybox-static puts it.
var busyboxPaths = []string{"/bin/busybox", "/usr/bin/busybox"}

// Base writes the lower layer into dir, which must exist: busybox, a link for
// each of its applets, and /etc. It reports how many files it wrote.
func Base(ctx context.Context, dir string) (files int, err error) {
	busybox, err := findBusybox(ctx)
	if err != nil {
		return 0, err
	}
	for _, d := range []string{"bin", "etc", "tmp", "root", "proc", "sys", "dev", "run", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return 0, err
		}
	}
	if err := os.Chmod(filepath.Join(dir, "tmp"), 0o1777|os.ModeSticky); err != nil {
		return 0, err
	}
	if err := copyFile(filepath.Join(dir, "bin/busybox"), busybox, 0o755); err != nil {
		return 0, err
	}
	files++
	applets, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return 0, fmt.Errorf("%s --list: %w", busybox, err)
	}
	for name := range strings.FieldsSeq(string(applets)) {
		if name == "busybox" || strings.Contains(name, "/") {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			return 0, err
		}
		files++
	}
	for name, content := range map[string]string{
		"etc/passwd":        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/tmp:/bin/sh\n",
		"etc/group":         "root:x:0:\napp:x:1000:\n",
		"etc/os-release":    "NAME=\"Coffer demo\"\nID=coffer-demo\n",
		"etc/nsswitch.conf": "hosts: files dns\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return 0, err
		}
		files++
	}
	return files, nil
}

// App writes the upper layer into dir: /app/run, a script that says where it
// runs and what it was given, and /app/secret.txt with the marker.
func App(dir, marker string) error {
	const script = `#!/bin/sh
echo "hello from inside: $(uname -sr), $(nproc) cpu, user $(id -u)"
echo "the image's secret has $(wc -c < /app/secret.txt) bytes"
[ -z "$DB_PASSWORD" ] || echo "the database password has ${#DB_PASSWORD} characters"
exit "${EXIT:-0}"
`
	if err := os.MkdirAll(filepath.Join(dir, "app"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "app/run"), []byte(script), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "app/secret.txt"), []byte(marker+"\n"), 0o644)
}

func findBusybox(ctx context.Context) (string, error) {
	for _, p := range busyboxPaths {
		head, err := readHead(p, 1<<20)
		if err != nil {
			continue
		}
		// A dynamic busybox would not run in the image.
		if out, err := exec.CommandContext(ctx, p, "true").CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s does not run: %w: %s", p, err, out)
		}
		if !bytes.Contains(head, []byte("/lib64/ld-linux")) {
			return p, nil
		}
	}
	return "", fmt.Errorf("no static busybox at %s: install Debian's package busybox-static (`make deps` does)", strings.Join(busyboxPaths, " or "))
}

func readHead(path string, n int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, n))
}

func copyFile(dst, src string, mode os.FileMode) error {
	data, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	return os.WriteFile(dst, data, mode)
}
