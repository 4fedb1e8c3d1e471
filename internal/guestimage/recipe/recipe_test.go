package recipe_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	guestrecipe "github.com/coffer-project/coffer/guest-image"
	"github.com/coffer-project/coffer/internal/guestimage/recipe"
)

// TestShipped reads what is built into the programs: the lock file must have a
// line for each package of the recipe and no other.
func TestShipped(t *testing.T) {
	t.Parallel()
	r, err := recipe.Parse([]byte(guestrecipe.Recipe))
	if err != nil {
		t.Fatal(err)
	}
	lock, err := recipe.ParseLock([]byte(guestrecipe.Lock))
	if err != nil {
		t.Fatal(err)
	}
	locked := map[string]bool{}
	for _, l := range lock {
		locked[l.For] = true
	}
	asked := map[string]bool{}
	for _, name := range r.PackageNames() {
		asked[name] = true
	}
	if diff := cmp.Diff(asked, locked); diff != "" {
		t.Errorf("recipe and lock file differ (write it anew: coffer guest build --update-lock):\n%s", diff)
	}
	if diff := cmp.Diff(guestrecipe.Lock, string(recipe.FormatLock(lock))); diff != "" {
		t.Errorf("the lock file is not as the builder writes it:\n%s", diff)
	}
}

// TestNoEmergencyShell (GHSA-6w5f-5wgr-qjg5): a boot that fails leaves nobody at a
// prompt, and the guest's random numbers do not wait for the host's devices.
func TestNoEmergencyShell(t *testing.T) {
	t.Parallel()
	r, err := recipe.Parse([]byte(guestrecipe.Recipe))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"panic=-1", "random.trust_cpu=on"} {
		if !slices.Contains(r.Cmdline, want) {
			t.Errorf("cmdline: expected %q, got %q", want, r.Cmdline)
		}
	}
	for _, p := range r.Cmdline {
		name, _, _ := strings.Cut(p, "=")
		if slices.Contains([]string{"init", "rdinit", "single", "emergency", "rescue", "rd.shell", "rd.break", "sysrq_always_enabled", "kgdboc"}, name) {
			t.Errorf("cmdline: %q gives a way in from the console", p)
		}
	}
	// What is started is the agent, and what it starts is not a shell.
	allowed := []string{"usr/bin/crun", "usr/bin/mke2fs"}
	for _, p := range r.Programs {
		if !slices.Contains(allowed, p.Dest) {
			t.Errorf("program %s: expected one of %q; a program that runs others needs a reason here", p.Dest, allowed)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, old, new, want string }{
		{"unknown key", "version = 1", "version = 1\nvresion = 2", "vresion: unknown key"},
		{"unknown key in a table", "[kernel]", "[kernel]\nrelease = 1", "kernel.release: unknown key"},
		{"version", "version = 1", "version = 7", "version: expected"},
		{"two parameters in one", `"panic=-1"`, `"panic=-1 quiet"`, "cmdline[2]"},
		{"compression", `compression = "lz4"`, `compression = "xz"`, "compression"},
		{"size", "max_initrd = 16777216", "max_initrd = 0", "max_initrd"},
		{"no kernel", `meta = "linux-image-6.12-cloud-amd64"`, "", "kernel.meta"},
		{"absolute path", `path = "etc/passwd"`, `path = "/etc/passwd"`, "file[0].path"},
		{"path twice", `path = "etc/group"`, `path = "etc/passwd"`, "file[1].path"},
		{"path outside", `path = "etc/group"`, `path = "../group"`, "file[1].path"},
		{"mode", "mode = 0o1777", "mode = 0o100755", "mode"},
		{"no TOML", "version = 1", "version is 1", "recipe:"},
	} {
		text := strings.Replace(guestrecipe.Recipe, c.old, c.new, 1)
		if text == guestrecipe.Recipe {
			t.Errorf("%s: the case changes nothing", c.name)
		}
		if _, err := recipe.Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: expected %q, got %v", c.name, c.want, err)
		}
	}
	// All problems at once.
	_, err := recipe.Parse([]byte("version = 3\ncompression = 'x'\nother = 1\n"))
	for _, want := range []string{"version", "compression", "other: unknown key", "kernel.meta", "max_initrd"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("expected %q, got %v", want, err)
		}
	}
}

func TestLock(t *testing.T) {
	t.Parallel()
	sum := strings.Repeat("0123456789abcdef", 4)
	text := "# comment\n\nb b 1:2~x+y-1 amd64 " + sum + "\nmeta a 1 all " + sum + "\n"
	got, err := recipe.ParseLock([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []recipe.Locked{{"b", "b", "1:2~x+y-1", "amd64", sum}, {"meta", "a", "1", "all", sum}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	again, err := recipe.ParseLock(recipe.FormatLock(got))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, again); diff != "" {
		t.Error(diff)
	}
	for want, line := range map[string]string{
		"expected 5 fields, got 4":  "a a 1 amd64",
		"expected a SHA-256":        "a a 1 amd64 " + sum[1:],
		"64 lower-case":             "a a 1 amd64 " + strings.ToUpper(sum),
		`"--option=x" is no`:        "a --option=x 1 amd64 " + sum,
		`"1;reboot" is no`:          "a a 1;reboot amd64 " + sum,
		"line 2: package a is name": "a a 1 amd64 " + sum + "\na a 2 amd64 " + sum,
	} {
		if _, err := recipe.ParseLock([]byte(line)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: expected %q, got %v", line, want, err)
		}
	}
}
