package boot

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRunStopsAtTheFailingPhase(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	ran := ""
	step := func(name string, err error) Phase {
		return Phase{name, func(context.Context) error { ran += name; return err }}
	}
	marks, err := Run(t.Context(), slog.New(slog.DiscardHandler), []Phase{step("a", nil), step("b", nil), step("c", boom), step("d", nil)})
	if !errors.Is(err, boom) || !strings.Contains(err.Error(), "boot phase c") {
		t.Errorf("error = %v, want boom in phase c", err)
	}
	if ran != "abc" {
		t.Errorf("ran %q, want abc", ran)
	}
	if len(marks) != 2 || marks[1].Name != "b" || marks[1].At < marks[0].At || marks[1].TSC < marks[0].TSC {
		t.Errorf("marks = %+v, want rising marks of a and b", marks)
	}
	if marks[0].At <= 0 {
		t.Errorf("mark a is at %v, want a positive time since boot", marks[0].At)
	}
}

func TestParseCmdline(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in   string
		want Cmdline
		err  string
	}{
		{in: "console=ttyS0 quiet panic=-1\n", want: Cmdline{TEE: TEEAuto}},
		{in: "quiet coffer.tee=soft", want: Cmdline{TEE: TEESoft}},
		{in: "quiet coffer.tee=soft-tdx", want: Cmdline{TEE: TEESoftTDX}},
		{in: "coffer.tee=tpm", want: Cmdline{TEE: TEETPM}},
		{in: "coffer.rest_api=all", want: Cmdline{TEE: TEEAuto, RESTAPI: "all"}},
		{in: "coffer.rest_api=everything", err: "coffer.rest_api: expected none, resource, attestation or all"},
		{in: "coffer.rest_api", err: "coffer.rest_api: expected"},
		{in: "coffer.tee=none coffer.development coffer.debug", want: Cmdline{TEE: TEENone, Development: true, Debug: true}},
		{in: "coffer.tee=none", err: "needs coffer.development"},
		{in: "coffer.tee=sample coffer.development", err: "expected auto, tpm, soft, soft-tdx or none"},
		{in: "coffer.tee=soft coffer.tee=none", err: "given twice"},
		{in: "coffer.developement", err: "unknown parameter"},
		{in: "coffer.development=1", err: "takes no value"},
		{in: strings.Repeat("x", maxCmdline+1), err: "at most"},
	} {
		got, err := ParseCmdline(tt.in)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("ParseCmdline(%.40q): error %v, want %q", tt.in, err, tt.err)
			}
			continue
		}
		if err != nil || got != tt.want {
			t.Errorf("ParseCmdline(%.40q) = %+v, %v, want %+v", tt.in, got, err, tt.want)
		}
	}
}

func TestParseModules(t *testing.T) {
	t.Parallel()
	got, err := parseModules([]byte("# order matters\nfailover.ko\n\nnet_failover\nvirtio_net.ko\n"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"failover.ko", "net_failover.ko", "virtio_net.ko"}, got); diff != "" {
		t.Error(diff)
	}
	if _, err := parseModules([]byte("../evil.ko\n")); err == nil {
		t.Error("a name with a directory was accepted")
	}
}

func TestDelegateCgroups(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(s string) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.controllers"), []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("cpuset cpu io memory hugetlb pids rdma\n")
	if err := delegateCgroups(dir); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil || string(got) != "+cpu +cpuset +io +memory +pids" {
		t.Errorf("subtree_control = %q, %v", got, err)
	}
	write("cpu\n")
	if err := delegateCgroups(dir); err == nil {
		t.Error("a kernel without the memory controller was accepted")
	}
}

func TestReadRandom(t *testing.T) {
	t.Parallel()
	var a, b [16]byte
	if err := errors.Join(readRandom(t.Context(), a[:]), readRandom(t.Context(), b[:])); err != nil {
		t.Fatal(err)
	}
	if a == b {
		t.Error("two reads gave the same bytes")
	}
}

func TestHarden(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "kernel"), 0o755); err != nil {
		t.Fatal(err)
	}
	sysrq := filepath.Join(dir, "kernel/sysrq")
	if err := os.WriteFile(sysrq, []byte("8"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := harden(dir); err != nil { // the others are not there
		t.Fatal(err)
	}
	if got, err := os.ReadFile(sysrq); err != nil || string(got) != "0" {
		t.Errorf("sysrq %q, %v", got, err)
	}
	if err := os.Mkdir(filepath.Join(dir, "kernel/dmesg_restrict"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := harden(dir); err == nil || !strings.Contains(err.Error(), "dmesg_restrict") {
		t.Errorf("a parameter that cannot be set: %v", err)
	}
}

// TestHardware: drivers are loaded where the environment is one.
func TestHardware(t *testing.T) {
	t.Parallel()
	for tee, want := range map[TEE]bool{TEEAuto: true, TEETPM: true, TEESoft: false, TEENone: false} {
		if tee.Hardware() != want {
			t.Errorf("%s: %t", tee, !want)
		}
	}
}

// A module that the kernel has needs no file: its file goes when it is loaded.
func TestLoadedModuleNeedsNoFile(t *testing.T) {
	dir := t.TempDir()
	entries, err := os.ReadDir("/sys/module")
	if err != nil || len(entries) == 0 {
		t.Skipf("not supported here: /sys/module lists no modules: %v", err)
	}
	// Files of modules may have dashes in their names.
	if err := loadModule(filepath.Join(dir, strings.ReplaceAll(entries[0].Name(), "_", "-")+".ko")); err != nil {
		t.Error(err)
	}
	if err := loadModule(filepath.Join(dir, "no-such-module.ko")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a module that is nowhere: %v", err)
	}
}
