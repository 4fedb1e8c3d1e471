package runtimeconfig_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
)

// TestSample: the sample is the defaults, and has every key.
func TestSample(t *testing.T) {
	t.Parallel()
	c, err := runtimeconfig.Parse([]byte(runtimeconfig.Sample))
	if err != nil {
		t.Fatal(err)
	}
	if want := runtimeconfig.Default(); !reflect.DeepEqual(c, want) {
		t.Errorf("sample gives\n%+v, the defaults are\n%+v", c, want)
	}
	for _, typ := range []reflect.Type{reflect.TypeFor[runtimeconfig.Config](), reflect.TypeFor[runtimeconfig.Trustee]()} {
		for i := range typ.NumField() {
			key := typ.Field(i).Tag.Get("toml")
			if !strings.Contains(runtimeconfig.Sample, "\n"+key+" = ") && !strings.Contains(runtimeconfig.Sample, "\n["+key+"]") {
				t.Errorf("the sample has no %s", key)
			}
		}
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "runtime.toml")
	if err := os.WriteFile(file, []byte("tee = \"soft\"\ndefault_vcpus = 2\nscratch = 1073741824\nboot_timeout = \"5m\"\n[unsealed_trustee]\nurl = \"https://t.example\"\nca = \"/etc/ca.pem\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := runtimeconfig.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if c.TEE != "soft" || c.DefaultVCPUs != 2 || c.Scratch != 1<<30 || c.BootTimeout.D().Minutes() != 5 || c.UnsealedTrustee.URL != "https://t.example" || c.KubeletRoot != "/var/lib/kubelet" {
		t.Errorf("got %+v", c)
	}
	if !c.Allows("coffer-project.io/vcpus") || c.Allows("coffer-project.io/debug") {
		t.Error("allowed annotations")
	}
	for name, path := range map[string]string{"absolute path": "runtime.toml", "no such file": filepath.Join(dir, "none"), "regular file": dir} {
		if _, err := runtimeconfig.Load(path); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := os.WriteFile(file, []byte(strings.Repeat("#\n", 40<<10)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := runtimeconfig.Load(file); err == nil || !strings.Contains(err.Error(), "at most 65536 bytes") {
		t.Errorf("long file: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"hypervisor = \"qemu\"":                              "hypervisor: unknown key",
		"[unsealed_trustee]\nuri = \"x\"":                    "unsealed_trustee.uri: unknown key",
		"TEE = \"soft\"":                                     "lower case",
		"tee = \"sgx\"":                                      "tee: expected auto, soft",
		"tee = \"\"":                                         "tee: expected auto, soft",
		"accelerator = \"hvf\"":                              "accelerator: expected auto, kvm or tcg",
		"default_vcpus = 0":                                  "default_vcpus: expected 1 to 32 (max_vcpus), got 0",
		"default_vcpus = 33":                                 "default_vcpus: expected 1 to 32",
		"max_vcpus = 100000":                                 "max_vcpus: expected 1 to 255",
		"default_memory = 0":                                 "default_memory: expected 1 to 65024 MiB",
		"overhead_memory = 10":                               "overhead_memory: expected 64 to 65536 MiB",
		"max_memory = 99999999":                              "max_memory: expected",
		"boot_timeout = \"0s\"":                              "boot_timeout: expected 1s to 24h",
		"create_timeout = \"-1m\"":                           "create_timeout: expected 1s",
		"shutdown_timeout = 3":                               "line 1",
		"scratch = 1":                                        "scratch: expected 33554432 to",
		"scratch = 33554433":                                 "scratch: expected a multiple of 4096",
		"scratch = -1":                                       "scratch: expected 33554432 to",
		"blob_cache_size = 1":                                "blob_cache_size: expected",
		"disk_slots = 99":                                    "disk_slots: expected 0 to",
		"host_path = \"mount\"":                              "host_path: expected copy or refuse",
		"guest_image = \"guest\"":                            "guest_image: expected a clean absolute path",
		"guest_image = \"\"":                                 "guest_image: expected a clean absolute path",
		"state_dir = \"/run/../etc\"":                        "state_dir: expected a clean absolute path",
		"qemu = \"./qemu\"":                                  "qemu: expected a program's name or an absolute path",
		"annotations = [\"coffer-project.io/image\"]":        "annotations[0]: expected one of coffer-project.io/memory, coffer-project.io/vcpus, coffer-project.io/volumes",
		"driver = \"docker\"":                                "driver: expected qemu or process",
		"driver = \"process\"\nagent = \"/a\"\ntee=\"none\"": "development = true",
		"driver = \"process\"\ndevelopment = true":           "agent: expected the path of coffer-agent",
		"driver = \"process\"\ndevelopment = true\nagent = \"/a\"": "tee: driver process has none",
		"[unsealed_trustee]\nurl = \"http://t\"":                   "unsealed_trustee.url: expected https://HOST",
		"[unsealed_trustee]\nca = \"/ca\"":                         "unsealed_trustee.ca: expected a url",
		"tee = \"soft":                                             "line 1",
		"\xff":                                                     "UTF-8",
	} {
		if c, err := runtimeconfig.Parse([]byte(text)); err == nil || c != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: expected an error with %q, got %v", text, want, err)
		}
	}
	_, err := runtimeconfig.Parse([]byte("tee = \"x\"\nnope = 1\nhost_path = \"y\""))
	if err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("expected all three problems, got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(runtimeconfig.Sample))
	f.Add([]byte("driver = \"process\"\ndevelopment = true\nagent = \"/a\"\ntee = \"none\""))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := runtimeconfig.Parse(data)
		if (c == nil) == (err == nil) {
			t.Fatalf("%v and %v", c, err)
		}
		if c != nil && (c.DefaultVCPUs < 1 || c.DefaultVCPUs > c.MaxVCPUs || c.OverheadMemory+c.DefaultMemory > c.MaxMemory || c.BootTimeout.D() <= 0) {
			t.Fatalf("accepted %+v", c)
		}
	})
}
