package eventlog_test

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"testing"

	"github.com/coffer-project/coffer/tee/eventlog"
)

// entry is an event of a log that a test makes.
type entry struct {
	register       int
	typ            eventlog.EventType
	data, measured string
}

func grubFile(register int, path, content string) entry {
	return entry{register, eventlog.IPL, path + "\x00", content}
}

func grubCmdline(register int, line string) entry {
	return entry{register, eventlog.IPL, "kernel_cmdline: " + line + "\x00", line}
}

func stubOptions(register int, line string) entry {
	tag := binary.LittleEndian.AppendUint32(nil, 0x8f3b22ed)
	return entry{register, eventlog.EventTag, string(tag) + "\x00\x00\x00\x00", string(eventlog.LoadOptions(line))}
}

func stubInitrd(register int, content string) entry {
	tag := binary.LittleEndian.AppendUint32(nil, 0x8f3b22ec)
	return entry{register, eventlog.EventTag, string(tag) + "\x00\x00\x00\x00", content}
}

func logOf(t *testing.T, kind eventlog.Kind, entries ...entry) *eventlog.Log {
	t.Helper()
	w, err := eventlog.NewWriter(kind, []eventlog.Alg{eventlog.SHA384})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, err := w.Measure(e.register, e.typ, []byte(e.data), []byte(e.measured)); err != nil {
			t.Fatal(err)
		}
	}
	return parse(t, w.Bytes(), kind)
}

// A system that is not the one that it should be extends registers with events that
// say otherwise; the log replays, as all of it was measured. It must not get its
// word into what the log says was booted.
func TestBootedSystemCannotLie(t *testing.T) {
	t.Parallel()
	image := entry{2, eventlog.EFIBootServicesApp, "grub", "grub"}
	bad := []entry{image, grubFile(3, "/vmlinuz", "bad kernel"), grubCmdline(3, "/vmlinuz bad"), stubInitrd(3, "bad initrd"), stubOptions(3, "BOOT_IMAGE=/vmlinuz bad")}
	sum := func(s string) []byte { d := sha512.Sum384([]byte(s)); return d[:] }
	honest := logOf(t, eventlog.CCEL, bad...).Boot(eventlog.SHA384)
	if !bytes.Equal(honest.Kernel, sum("bad kernel")) || !bytes.Equal(honest.Initrd, sum("bad initrd")) || honest.Cmdline != "BOOT_IMAGE=/vmlinuz bad" {
		t.Fatalf("what was booted: got %+v", honest)
	}
	for _, register := range []int{1, 2, 3, 4} {
		for name, lies := range map[string][]entry{
			"a kernel from GRUB":      {grubFile(register, "/vmlinuz", "good kernel"), grubCmdline(register, "/vmlinuz bad")},
			"another path":            {grubFile(register, "/good", "good kernel"), grubCmdline(register, "/good line")},
			"a kernel of linuxefi":    {grubFile(register, "grub_linuxefi Kernel", "good kernel")},
			"an initrd of linuxefi":   {grubFile(register, "grub_linuxefi Initrd", "good initrd")},
			"an initrd from the stub": {stubInitrd(register, "good initrd")},
			"a line from GRUB":        {grubCmdline(register, "/vmlinuz good")},
			"a line from the stub":    {stubOptions(register, "good")},
			"both lines":              {grubCmdline(register, "/vmlinuz good"), stubOptions(register, "BOOT_IMAGE=/vmlinuz good")},
		} {
			b := logOf(t, eventlog.CCEL, append(bad[:len(bad):len(bad)], lies...)...).Boot(eventlog.SHA384)
			// In the register of images the lie is among the images, of which a policy
			// has to know every one.
			known := register == 2 && len(b.Images) > 1
			for what, got := range map[string][2][]byte{
				"kernel": {b.Kernel, honest.Kernel}, "initrd": {b.Initrd, honest.Initrd}, "cmdline_digest": {b.CmdlineDigest, honest.CmdlineDigest},
			} {
				if got[0] != nil && !bytes.Equal(got[0], got[1]) && !known {
					t.Errorf("register %d, %s: the %s is what the system says", register, name, what)
				}
			}
			if b.Cmdline != "" && b.Cmdline != honest.Cmdline {
				t.Errorf("register %d, %s: the command line is %q", register, name, b.Cmdline)
			}
			if register != 3 && register != 2 && !bytes.Equal(b.Kernel, honest.Kernel) {
				t.Errorf("register %d, %s: the kernel is not told any more", register, name)
			}
		}
	}
	// A TPM's: the same in registers 8 and 9, and not in those of the system.
	pcrs := logOf(t, eventlog.TCG2, grubFile(9, "/vmlinuz", "kernel"), grubCmdline(8, "/vmlinuz line"), stubInitrd(9, "initrd"), stubInitrd(14, "lie"), grubCmdline(23, "lie")).Boot(eventlog.SHA384)
	if !bytes.Equal(pcrs.Kernel, sum("kernel")) || !bytes.Equal(pcrs.Initrd, sum("initrd")) || pcrs.Cmdline != "/vmlinuz line" {
		t.Errorf("PCRs: got %+v", pcrs)
	}
}

// The data of a runtime event is what was measured, or nothing is said of it.
func TestRuntimeEventCannotLie(t *testing.T) {
	t.Parallel()
	event, err := eventlog.NewRuntimeEvent("d", "pull", "image@good")
	if err != nil {
		t.Fatal(err)
	}
	for measured, want := range map[string]bool{string(event.Data()): true, "d pull image@bad": false} {
		claim, ok := logOf(t, eventlog.CCEL, entry{4, eventlog.EventTag, string(event.Data()), measured}).ClaimsOf(eventlog.SHA384)[0].(map[string]any)
		if !ok {
			t.Fatal("no claim")
		}
		details, ok := claim["details"].(map[string]any)
		if got := details["data"] != nil; !ok || got != want || claim["digest_matches_event"] != want {
			t.Errorf("%q: got %v", measured, claim)
		}
	}
}
