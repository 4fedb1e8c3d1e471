package vtpm_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/guestimage/cpio"
	"github.com/coffer-project/coffer/internal/host/hosttest"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/measure/qemuload"
	"github.com/coffer-project/coffer/tee/measure/vtpm"
	"github.com/coffer-project/coffer/tee/tpm"
	"github.com/coffer-project/coffer/tee/tpm/tpmverify"
)

// Where Debian's package ovmf puts them.
const (
	ovmfCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// cmdline ends a kernel that panics, and lets none do so for a timer that is late
// because the host is busy.
const cmdline = "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests random.trust_cpu=on tsc=reliable no_timer_check"

// absentError says what is missing to boot a machine with a TPM.
type absentError struct{ what string }

func (e *absentError) Error() string {
	return e.what + " is not installed (Debian: apt-get install swtpm ovmf qemu-system-x86)"
}

// installed reports what is missing.
func installed() error {
	if _, err := exec.LookPath("swtpm"); err != nil {
		return &absentError{"swtpm"}
	}
	for _, name := range []string{ovmfCode, ovmfVars} {
		if _, err := os.Stat(name); err != nil {
			return &absentError{name}
		}
	}
	return nil
}

// boot is a machine's start and what its TPM quotes of it.
type boot struct {
	cpus   int
	launch vtpm.Launch
	nonce  []byte

	pcrs map[int][]byte
	log  *eventlog.Log
}

// TestLive boots two machines with OVMF, a TPM and a kernel, and compares what
// their TPMs quote with what is predicted from the files.
func TestLive(t *testing.T) {
	kernel := hosttest.Kernel(t)
	if err := installed(); err != nil {
		if absent, ok := errors.AsType[*absentError](err); ok && os.Getenv(hosttest.RequireVariable) == "" {
			t.Skip(absent)
		}
		t.Fatal(err)
	}
	program := buildGuest(t)
	first := &boot{cpus: 1, launch: vtpm.Launch{
		Kernel: readFile(t, kernel), Cmdline: cmdline, Machine: qemuload.Q35, Memory: 512 << 20,
	}}
	second := &boot{cpus: 1, launch: first.launch}
	second.launch.Cmdline = cmdline + " coffer.test=žluťoučký"
	var work sync.WaitGroup
	for _, b := range []*boot{first, second} {
		b.launch.Firmware, b.launch.Vars = readFile(t, ovmfCode), readFile(t, ovmfVars)
		b.nonce = make([]byte, 32)
		_, _ = rand.Read(b.nonce)
		b.launch.Initrd = initrd(t, program, b.nonce)
		work.Go(func() { b.run(t) })
	}
	work.Wait()
	if t.Failed() {
		return
	}
	for _, b := range []*boot{first, second} {
		b.compareWithLog(t)
		b.compareWithPrediction(t)
	}
	first.changesAreFound(t)
	// The PEI volume, learned from the first machine, is that of the second.
	for _, e := range first.log.Events {
		if e.Register == 0 && e.Type == eventlog.EFIPlatformFirmwareBlob {
			second.launch.PEIVolume = e.Digests
			break
		}
	}
	p := second.predict(t, second.launch)
	if len(p.Unpredicted) > 0 || !bytes.Equal(p.PCRs[eventlog.SHA256][0], second.pcrs[0]) {
		t.Errorf("PCR 0: predicted %x, quoted %x; %v", p.PCRs[eventlog.SHA256][0], second.pcrs[0], p.Unpredicted)
	}
}

func (b *boot) predict(t *testing.T, l vtpm.Launch) *vtpm.Prediction {
	t.Helper()
	p, err := vtpm.Predict(l)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// compareWithLog replays the firmware's log; register 10 is Linux's own.
func (b *boot) compareWithLog(t *testing.T) {
	t.Helper()
	want := map[int][]byte{}
	for r, v := range b.pcrs {
		if r != 10 {
			want[r] = v
		}
	}
	if err := b.log.Compare(eventlog.SHA256, want); err != nil {
		t.Error(err)
	}
}

// predicted are the registers that the package claims to predict without help.
var predicted = []int{1, 2, 3, 4, 5, 6, 7, 9}

func (b *boot) compareWithPrediction(t *testing.T) {
	t.Helper()
	p := b.predict(t, b.launch)
	strong, err := b.log.Replay(eventlog.SHA384)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range predicted {
		if got := p.PCRs[eventlog.SHA256][r]; !bytes.Equal(got, b.pcrs[r]) {
			t.Errorf("PCR %d: predicted %x, quoted %x", r, got, b.pcrs[r])
		}
		if got := p.PCRs[eventlog.SHA384][r]; !bytes.Equal(got, strong[r]) {
			t.Errorf("PCR %d (SHA-384): predicted %x, got %x", r, got, strong[r])
		}
	}
	if len(p.PCRs[eventlog.SHA256]) != len(predicted) || len(p.Unpredicted) != 1 || p.Unpredicted[0] == "" {
		t.Errorf("predicted %d registers, not %v", len(p.PCRs[eventlog.SHA256]), p.Unpredicted)
	}
	// Event by event, too: what is not known is one digest.
	var events []eventlog.Event
	for _, e := range b.log.Events {
		if e.Type != eventlog.NoAction {
			events = append(events, e)
		}
	}
	if len(events) != len(p.Events) {
		t.Fatalf("%d events are predicted, the log has %d", len(p.Events), len(events))
	}
	unknown := 0
	for i, e := range p.Events {
		if e.PCR != events[i].Register || e.Type != events[i].Type {
			t.Errorf("event %d: predicted PCR %d, %s; got PCR %d, %s", i, e.PCR, e.Type, events[i].Register, events[i].Type)
		}
		if e.Digests == nil {
			unknown++
		}
		for _, d := range e.Digests {
			if !bytes.Equal(d.Value, events[i].Digest(d.Alg)) {
				t.Errorf("event %d, %s (%s): predicted %x, got %x", i, e.What, d.Alg, d.Value, events[i].Digest(d.Alg))
			}
		}
	}
	if unknown != 1 {
		t.Errorf("%d events are not known, expected one", unknown)
	}
}

// changesAreFound predicts for other inputs: exactly the registers of what was
// changed differ from the quote.
func (b *boot) changesAreFound(t *testing.T) {
	t.Helper()
	for name, c := range map[string]struct {
		change func(*vtpm.Launch)
		pcrs   []int
	}{
		"cmdline": {func(l *vtpm.Launch) { l.Cmdline += " init=/bin/sh" }, []int{9}},
		"initrd": {func(l *vtpm.Launch) {
			l.Initrd = bytes.Clone(l.Initrd)
			l.Initrd[len(l.Initrd)/2] ^= 1
		}, []int{9}},
		"larger initrd": {func(l *vtpm.Launch) { l.Initrd = append(bytes.Clone(l.Initrd), make([]byte, 8192)...) }, []int{4, 9}},
		"kernel": {func(l *vtpm.Launch) {
			l.Kernel = bytes.Clone(l.Kernel)
			l.Kernel[len(l.Kernel)/2] ^= 1
		}, []int{4}},
		"memory":   {func(l *vtpm.Launch) { l.Memory *= 2 }, []int{4}},
		"firmware": {func(l *vtpm.Launch) { l.FirmwareVersion = "other" }, nil}, // PCR 0 is not predicted here
		"secure boot": {func(l *vtpm.Launch) {
			l.Vars = readFile(t, "/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
		}, nil},
	} {
		l := b.launch
		c.change(&l)
		p := b.predict(t, l)
		var differ []int
		for r, v := range p.PCRs[eventlog.SHA256] {
			if !bytes.Equal(v, b.pcrs[r]) {
				differ = append(differ, r)
			}
		}
		slices.Sort(differ)
		if !slices.Equal(differ, c.pcrs) {
			t.Errorf("another %s: expected a difference in the PCRs %v, got %v", name, c.pcrs, differ)
		}
	}
}

// run boots the machine and verifies its evidence. It only reports with Error: it
// has a goroutine of its own.
func (b *boot) run(t *testing.T) {
	console, evidence, err := b.start(t.Context(), t.TempDir())
	if err != nil {
		t.Errorf("%v; the console said:\n%s", err, console)
		return
	}
	v, err := tpmverify.New(tpmverify.Options{})
	if err != nil {
		t.Error(err)
		return
	}
	if _, err := v.Verify(t.Context(), evidence, tee.Expected{ReportData: b.nonce}); err != nil {
		t.Error(err)
		return
	}
	e, err := tpm.ParseEvidence(evidence)
	if err != nil {
		t.Error(err)
		return
	}
	b.pcrs = map[int][]byte{}
	for r := range e.Quote.PCRs {
		b.pcrs[r] = bytes.Clone(e.Quote.PCRs[r][:])
	}
	if b.log, err = eventlog.Parse(e.EventLog, eventlog.TCG2); err != nil {
		t.Error(err)
	}
}

// start runs the machine until it turns itself off.
func (b *boot) start(ctx context.Context, dir string) (console []byte, evidence json.RawMessage, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	path := func(name string) string { return filepath.Join(dir, name) }
	for name, data := range map[string][]byte{"vars.fd": b.launch.Vars, "kernel": b.launch.Kernel, "initrd": b.launch.Initrd, "code.fd": b.launch.Firmware} {
		if err := os.WriteFile(path(name), data, 0o600); err != nil {
			return nil, nil, err
		}
	}
	channel, stop, err := startTPM(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	defer stop()
	q := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", string(b.launch.Machine), "-accel", "tcg", "-cpu", "max",
		"-m", fmt.Sprint(b.launch.Memory>>20), "-smp", fmt.Sprint(b.cpus), "-nodefaults", "-nographic", "-no-reboot",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file="+path("code.fd"),
		"-drive", "if=pflash,format=raw,unit=1,file="+path("vars.fd"),
		"-chardev", "socket,id=tpm,fd=3", "-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm",
		"-chardev", "file,id=console,path="+path("console"), "-device", "isa-serial,chardev=console",
		"-chardev", "file,id=out,path="+path("out"), "-device", "isa-serial,chardev=out",
		"-kernel", path("kernel"), "-initrd", path("initrd"), "-append", b.launch.Cmdline)
	q.ExtraFiles = []*os.File{channel}
	said, err := q.CombinedOutput()
	console, _ = os.ReadFile(path("console"))
	if err != nil {
		return console, nil, fmt.Errorf("qemu: %w: %s", err, said)
	}
	out, err := os.ReadFile(path("out"))
	if err != nil {
		return console, nil, err
	}
	_, rest, found := bytes.Cut(out, []byte("EVIDENCE "))
	evidence, _, ended := bytes.Cut(rest, []byte(" END"))
	if !found || !ended {
		return console, nil, errors.New("the guest sent no evidence")
	}
	return console, evidence, nil
}

// startTPM runs a TPM of the machine's own until stop is called, and returns the
// machine's end of its control channel.
func startTPM(ctx context.Context, dir string) (channel *os.File, stop func(), err error) {
	state := filepath.Join(dir, "tpm")
	if err := os.Mkdir(state, 0o700); err != nil {
		return nil, nil, err
	}
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "machine"), os.NewFile(uintptr(pair[1]), "tpm")
	defer func() { _ = theirs.Close() }()
	c := exec.CommandContext(ctx, "swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state,
		"--ctrl", "type=unixio,clientfd=3", "--flags", "startup-clear", "--terminate")
	c.ExtraFiles = []*os.File{theirs}
	if err := c.Start(); err != nil {
		_ = ours.Close()
		return nil, nil, err
	}
	return ours, func() {
		_ = ours.Close()
		_ = c.Process.Kill()
		_ = c.Wait()
	}, nil
}

func buildGuest(t *testing.T) []byte {
	t.Helper()
	name := filepath.Join(t.TempDir(), "init")
	c := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", name, "./internal/testguest")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("building the guest: %v\n%s", err, out)
	}
	return readFile(t, name)
}

// initrd has the guest, and the nonce it is to quote over.
func initrd(t *testing.T, program, nonce []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := cpio.NewWriter(&b)
	for _, e := range []cpio.Entry{
		{Name: "dev", Mode: cpio.TypeDir | 0o755},
		{Name: "dev/console", Mode: cpio.TypeChar | 0o600, Major: 5, Minor: 1},
		{Name: "init", Mode: cpio.TypeRegular | 0o755, Data: program},
		{Name: "nonce", Mode: cpio.TypeRegular | 0o600, Data: nonce},
		{Name: "sys", Mode: cpio.TypeDir | 0o755},
	} {
		if err := w.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
