package cli_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/coffer-project/coffer/internal/cli"
	"github.com/coffer-project/coffer/internal/guestimage/manifest"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/tee/collateral/collateraltest"
	"github.com/coffer-project/coffer/tee/snp"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"coffer": func() {
		os.Exit(cli.Main(context.Background(), cli.Env{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}))
	}})
}

// TestScripts runs the contracts of the command line in testdata.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			repo, err := filepath.Abs("../..")
			if err != nil {
				return err
			}
			e.Setenv("REPO", repo)
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("XDG_STATE_HOME", filepath.Join(e.WorkDir, "state"))
			e.Setenv("XDG_CACHE_HOME", filepath.Join(e.WorkDir, "cache"))
			e.Setenv("TMPDIR", filepath.Join(e.WorkDir, ".tmp"))
			return nil
		},
		Cmds: scriptCommands(),
	})
}

// scriptCommands are what scripts can call beside the tool.
func scriptCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"exits": exits, "mkimage": mkimage, "mkguest": mkguest, "mkkey": mkkey, "mkbytes": mkbytes, "mkregistry": mkregistry, "mkcollateral": mkcollateral, "empty": empty, "json": isJSON, "mktrustee": mktrustee, "asks": asks, "lacks": lacks, "recordid": recordid, "digest": digest, "edit": edit, "unhex": unhex,
		"waitfor": waitfor,
		"flip": flip, "cut": cut, "join": join, "verdict": isVerdict, "mksoft": mksoft,
		"mkfirmware": mkfirmware, "mkkernel": mkkernel, "mkkey384": mkkey384, "mksigstruct": mksigstruct,
	}
}

// exits runs a command that has to end with a code: exits CODE coffer ….
func exits(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS…")
	}
	code := "0"
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		code = err.Error()
		code = strings.TrimPrefix(code, "exit status ")
	}
	if code != args[0] {
		ts.Fatalf("expected exit code %s, got %s", args[0], code)
	}
}

// unhex writes bytes that a file has in hex, with white space: unhex FROM TO.
func unhex(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: unhex FROM TO")
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(ts.ReadFile(args[0])), ""))
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), b, 0o600))
}

// mkimage makes an image from a directory: mkimage LAYOUT TAG DIR.
func mkimage(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: mkimage LAYOUT TAG DIR")
	}
	l, err := layout.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	defer func() { _ = l.Close() }()
	d, err := build.Build(context.Background(), l, build.Options{
		Layers: []build.Tree{{Dir: ts.MkAbs(args[2]), ModTime: time.Unix(0, 0)}}, Compression: oci.Gzip,
		Config: oci.ImageConfig{Config: oci.ContainerConfig{
			Entrypoint: []string{"/bin/app"}, Cmd: []string{"--serve"}, Env: []string{"PATH=/bin", "MODE=image"}, User: "5:6", WorkingDir: "/srv",
		}},
	})
	ts.Check(err)
	ts.Check(l.Tag(context.Background(), d, args[1]))
}

// mkguest makes a small guest image, which no machine could boot: mkguest DIR.
func mkguest(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: mkguest DIR")
	}
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o700))
	file := func(name string, content []byte) manifest.File {
		ts.Check(os.WriteFile(filepath.Join(dir, name), content, 0o600))
		sum := sha256.Sum256(content)
		return manifest.File{Name: name, SHA256: hex.EncodeToString(sum[:]), Size: int64(len(content))}
	}
	zeroes := sha256.Sum256(nil)
	none := hex.EncodeToString(zeroes[:])
	firmware := file("firmware.bin", make([]byte, 64<<10))
	m := manifest.Manifest{
		Version: manifest.Version, Architecture: "amd64", Kernel: file("vmlinuz", make([]byte, 4096)),
		Initrd: manifest.Initrd{File: file("initrd.img", []byte("initrd")), Compression: "none"}, Firmware: &firmware,
		Cmdline: "console=ttyS0", Agent: manifest.Agent{Version: "test", SHA256: none}, Inputs: none,
	}
	data, err := m.Encode()
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(dir, manifest.FileName), data, 0o600))
}

// mkkey makes a private key (PKCS#8): mkkey FILE.
func mkkey(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: mkkey FILE")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
}

// mkregistry starts a registry with TLS until the script ends, writes the
// certificate that vouches for it and sets REGISTRY: mkregistry FILE.
func mkregistry(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: mkregistry FILE")
	}
	s := httptest.NewTLSServer(ggcr.New(ggcr.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo))))
	ts.Defer(s.Close)
	ts.Setenv("REGISTRY", strings.TrimPrefix(s.URL, "https://"))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600))
}

// mkbytes makes a file of zeroes: mkbytes FILE SIZE, with SIZE as 32 or 2M.
func mkbytes(ts *testscript.TestScript, _ bool, args []string) {
	sizes := map[string]int64{"31": 31, "32": 32, "2M": 2 << 20}
	if len(args) != 2 || sizes[args[1]] == 0 {
		ts.Fatalf("usage: mkbytes FILE 31|32|2M")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), make([]byte, sizes[args[1]]), 0o600))
}

// empty checks that a directory has no entry: empty DIR.
func empty(ts *testscript.TestScript, _ bool, args []string) {
	entries, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	for _, e := range entries {
		ts.Fatalf("left %s", e.Name())
	}
}

// waitfor waits until a program in the background has written a file:
// waitfor FILE.
func waitfor(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: waitfor FILE")
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if info, err := os.Stat(ts.MkAbs(args[0])); err == nil && info.Size() > 0 {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s was not written", args[0])
		}
	}
}

// isJSON checks that standard output is one JSON document.
func isJSON(ts *testscript.TestScript, _ bool, _ []string) {
	if out := ts.ReadFile("stdout"); !json.Valid([]byte(out)) {
		ts.Fatalf("standard output is not one JSON document: %s", out)
	}
}

// mkcollateral starts a service of collateral, whose URL it puts into $SERVICE,
// and writes its roots, and evidence of SNP and TDX: mkcollateral. With an
// argument the service lies: mkcollateral 'a page for browsers'.
func mkcollateral(ts *testscript.TestScript, _ bool, args []string) {
	s, err := collateraltest.New(nil)
	ts.Check(err)
	s.SetHygon("TEST0001", []byte("not Hygon's"))
	if len(args) == 1 {
		s.Set(collateraltest.Behaviour{Lie: collateraltest.Lie(args[0])})
	}
	server := httptest.NewServer(s)
	ts.Defer(server.Close)
	ts.Setenv("SERVICE", server.URL)
	amd, err := s.AMDChain(snp.Milan)
	ts.Check(err)
	write := func(name string, data []byte) { ts.Check(os.WriteFile(ts.MkAbs(name), data, 0o600)) }
	write("amd.pem", amd)
	write("intel.pem", s.IntelRoot())
	for name, file := range map[string]string{
		"report.bin": "../../tee/snp/testdata/test-report.bin", "tcbInfo.json": "../../tee/collateral/testdata/pcs/tcbInfo.json",
		"enclaveIdentity.json": "../../tee/collateral/testdata/pcs/enclaveIdentity.json",
	} {
		data, err := os.ReadFile(file)
		ts.Check(err)
		write(name, data)
	}
}
