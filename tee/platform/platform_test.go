package platform_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/platform"
)

// driver is a report interface with one driver, or without any.
type driver struct {
	configfsi.Client
	name         string
	mkdir, read  error
	made, gone   int
	removeFailed error
}

func (d *driver) MkdirTemp(dir, _ string) (string, error) {
	if dir != "/sys/kernel/config/tsm/report" {
		return "", fs.ErrInvalid
	}
	if d.mkdir != nil {
		return "", &fs.PathError{Op: "mkdir", Path: dir, Err: d.mkdir}
	}
	d.made++
	return dir + "/entry1", nil
}

func (d *driver) ReadFile(name string) ([]byte, error) {
	if name != "/sys/kernel/config/tsm/report/entry1/provider" {
		return nil, fs.ErrInvalid
	}
	return []byte(d.name + "\n"), d.read
}

func (d *driver) RemoveAll(name string) error {
	if name != "/sys/kernel/config/tsm/report/entry1" {
		return fs.ErrInvalid
	}
	d.gone++
	return d.removeFailed
}

func files(names ...string) fstest.MapFS {
	m := fstest.MapFS{}
	for _, n := range names {
		name, content, _ := strings.Cut(n, "=")
		m[name] = &fstest.MapFile{Data: []byte(content)}
	}
	return m
}

func env(name string) func(string) string {
	return func(n string) string {
		if n == name {
			return "yes"
		}
		return ""
	}
}

// TestDetect: every environment that shows itself without a TPM. A TPM is not
// touched for them, whatever it holds.
func TestDetect(t *testing.T) {
	t.Parallel()
	everything := files("dev/tdx_guest", "dev/attestation/attestation_type=dcap", "dev/sev-guest", "dev/csv-guest", "sys/firmware/uv/prot_virt_guest=1", "dev/tpm0")
	without := func(names ...string) fstest.MapFS {
		m := fstest.MapFS{}
		for k, v := range everything {
			if !slices.Contains(names, k) {
				m[k] = v
			}
		}
		return m
	}
	for _, tt := range []struct {
		name string
		m    platform.Machine
		want tee.Name
		sign string
	}{
		{"TDX by its driver", platform.Machine{ConfigFS: &driver{name: "tdx_guest"}}, tee.TDX, "configfs-tsm provider tdx_guest"},
		{"TDX by its device", platform.Machine{FS: files("dev/tdx_guest")}, tee.TDX, "/dev/tdx_guest"},
		{"SGX by Occlum", platform.Machine{Getenv: env("OCCLUM")}, tee.SGX, "environment variable OCCLUM"},
		{"SGX by Gramine", platform.Machine{FS: files("dev/attestation/attestation_type=dcap\n")}, tee.SGX, "/dev/attestation/attestation_type"},
		{"SNP by its platform device", platform.Machine{FS: files("sys/devices/platform/sev-guest/uevent")}, tee.SNP, "/sys/devices/platform/sev-guest"},
		{"SNP by its device", platform.Machine{FS: files("dev/sev-guest")}, tee.SNP, "/dev/sev-guest"},
		{"SNP by its driver", platform.Machine{FS: files("etc/passwd"), ConfigFS: &driver{name: "sev_guest"}}, tee.SNP, "configfs-tsm provider sev_guest"},
		{"CSV", platform.Machine{FS: files("dev/csv-guest")}, tee.CSV, "/dev/csv-guest"},
		{"CCA", platform.Machine{ConfigFS: &driver{name: "arm_cca_guest"}}, tee.CCA, "configfs-tsm provider arm_cca_guest"},
		{"SE", platform.Machine{FS: files("sys/firmware/uv/prot_virt_guest=1\n")}, tee.SE, "/sys/firmware/uv/prot_virt_guest"},
		{"all: TDX first", platform.Machine{FS: everything, Getenv: env("OCCLUM"), ConfigFS: &driver{name: "arm_cca_guest"}}, tee.TDX, "/dev/tdx_guest"},
		{"all but TDX: SGX", platform.Machine{FS: without("dev/tdx_guest")}, tee.SGX, ""},
		{"then SNP", platform.Machine{FS: without("dev/tdx_guest", "dev/attestation/attestation_type")}, tee.SNP, ""},
		{"then CSV", platform.Machine{FS: without("dev/tdx_guest", "dev/attestation/attestation_type", "dev/sev-guest"), ConfigFS: &driver{name: "arm_cca_guest"}}, tee.CSV, ""},
		{"then CCA", platform.Machine{FS: files("sys/firmware/uv/prot_virt_guest=1"), ConfigFS: &driver{name: "arm_cca_guest"}}, tee.CCA, ""},
	} {
		tt.m.TPM = untouched(t, tt.name)
		for _, candidates := range [][]platform.Candidate{tt.m.Hardware(), anything(tt.m)} {
			got, err := platform.Detect(t.Context(), candidates)
			if err != nil || got.TEE != tt.want || tt.sign != "" && got.Sign != tt.sign {
				t.Errorf("%s: expected %s by %q, got %s by %q, %v", tt.name, tt.want, tt.sign, got.TEE, got.Sign, err)
			}
		}
		if d, ok := tt.m.ConfigFS.(*driver); ok && (d.made != d.gone || d.made > 2) {
			t.Errorf("%s: %d entries made for two detections, %d removed", tt.name, d.made, d.gone)
		}
	}
}

// TestNone: no environment is never the sample TEE, and not a bare TPM either.
func TestNone(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]platform.Machine{
		"zero":      {},
		"no driver": {FS: files("etc/passwd"), Getenv: env("HOME"), ConfigFS: &driver{mkdir: unix.ENXIO}},
		"no configfs": {
			FS:       files("dev/attestation/attestation_type=epid", "sys/firmware/uv/prot_virt_guest=0"),
			ConfigFS: &driver{mkdir: fs.ErrNotExist},
		},
		"another driver": {ConfigFS: &driver{name: "fake"}},
		"a TPM's node":   {FS: files("dev/tpmrm0")},
	} {
		_, err := platform.Detect(t.Context(), m.Hardware())
		if !errors.Is(err, platform.ErrNone) || !strings.Contains(err.Error(), "looked for tdx, sgx, snp, csv, cca, se, az-tdx-vtpm, az-snp-vtpm") {
			t.Errorf("%s: expected an error that names what was looked for, got %v", name, err)
		}
	}
	for _, c := range anything(platform.ThisMachine()) {
		if c.TEE == tee.Sample || c.TEE == tee.SampleDevice {
			t.Errorf("%s is a candidate", c.TEE)
		}
	}
}

// unreadable fails to open one file.
type unreadable struct {
	fs.FS
	name string
}

func (u unreadable) Open(name string) (fs.File, error) {
	if name == u.name {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	return u.FS.Open(name)
}

func (u unreadable) Stat(name string) (fs.FileInfo, error) {
	if name == u.name {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: unix.EIO}
	}
	return fs.Stat(u.FS, name)
}

// TestUnreadableSign: a later candidate is no answer where an earlier one cannot
// be excluded.
func TestUnreadableSign(t *testing.T) {
	t.Parallel()
	snp := files("dev/sev-guest", "dev/attestation/attestation_type/x=")
	for name, tt := range map[string]struct {
		m    platform.Machine
		says string
	}{
		"no entry":          {platform.Machine{FS: snp, ConfigFS: &driver{mkdir: unix.EBUSY}}, "looking for tdx: configfs-tsm: mkdir"},
		"no provider":       {platform.Machine{FS: snp, ConfigFS: &driver{name: "tdx_guest", read: unix.EIO}}, "looking for tdx: configfs-tsm: input/output"},
		"entry stays":       {platform.Machine{FS: snp, ConfigFS: &driver{name: "tdx_guest", removeFailed: unix.EBUSY}}, "looking for tdx: configfs-tsm: device or resource busy"},
		"device":            {platform.Machine{FS: unreadable{snp, "dev/tdx_guest"}}, "looking for tdx: stat"},
		"content":           {platform.Machine{FS: unreadable{snp, "dev/attestation/attestation_type"}}, "looking for sgx: open"},
		"content: no file":  {platform.Machine{FS: snp}, "looking for sgx: /dev/attestation/attestation_type: read"},
		"TPM does not open": {platform.Machine{TPM: opens(nil, unix.EACCES)}, "looking for az-tdx-vtpm: permission denied"},
	} {
		got, err := platform.Detect(t.Context(), tt.m.Hardware())
		if err == nil || !strings.Contains(err.Error(), tt.says) || errors.Is(err, platform.ErrNone) {
			t.Errorf("%s: expected an error with %q, got %s, %v", name, tt.says, got.TEE, err)
		}
	}
}

// TestAttester: what has no attester says so, and what has one but no way to a
// report says which machine it is.
func TestAttester(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		m    platform.Machine
		says string
	}{
		"CSV": {platform.Machine{FS: files("dev/csv-guest")}, "this machine is csv (/dev/csv-guest), for which there is no attester"},
		"SGX": {platform.Machine{Getenv: env("OCCLUM")}, "this machine is sgx (environment variable OCCLUM), for which there is no attester"},
		"SE":  {platform.Machine{FS: files("sys/firmware/uv/prot_virt_guest=1")}, "for which there is no attester"},
	} {
		found, err := platform.Detect(t.Context(), tt.m.Hardware())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if a, err := found.Attester(t.Context()); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: expected an error with %q, got %v, %v", name, tt.says, a, err)
		}
	}
	if _, err := os.Stat("/dev/sev-guest"); errors.Is(err, fs.ErrNotExist) {
		found, err := platform.Detect(t.Context(), platform.Machine{FS: files("dev/sev-guest")}.Hardware())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := found.Attester(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "this machine is snp (/dev/sev-guest), but: ") {
			t.Errorf("SNP without a device: got %v", err)
		}
	}
	want := errors.New("broken")
	broken := platform.Candidate{TEE: tee.CCA, Sign: func(context.Context) (string, error) { return "a sign", nil }, New: func(context.Context) (tee.Attester, error) { return nil, want }}
	found, err := platform.Detect(t.Context(), []platform.Candidate{broken})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := found.Attester(t.Context()); !errors.Is(err, want) {
		t.Errorf("expected the attester's error, got %v", err)
	}
}

// endless is a file system with an event log without an end.
type endless struct{ fs.FS }

func (e endless) Open(name string) (fs.File, error) {
	f, err := e.FS.Open(name)
	if err == nil && strings.HasSuffix(name, "binary_bios_measurements") {
		return endlessFile{f}, nil
	}
	return f, err
}

type endlessFile struct{ fs.File }

func (endlessFile) Read(b []byte) (int, error) { return len(b), nil }

// anything is all that can be looked for, a bare TPM last.
func anything(m platform.Machine) []platform.Candidate { return append(m.Hardware(), m.BareTPM()) }
