// Package tests runs the trustee as its operators do: the built programs, with
// real security modules and databases, and the same trustee inside the test
// where a process would add nothing but time. It holds what only the whole can
// show: that the parts agree on what the configuration says, that a secret
// reaches whom it is for and nobody and nothing else, and that what the
// machinery around the trustee does (crashes, full disks, slow servers, moved
// databases, exchanged certificates) loses and releases nothing.
//
// COFFER_BIN is the directory of the programs; without it the tests build them.
package tests

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/trustee/hsmtest"
	"github.com/coffer-project/coffer/internal/trustee/pgtest"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/softtee"
	"github.com/coffer-project/coffer/tee/softtee/softport"
)

// limit is for whatever should happen soon, on a busy machine.
const limit = 30 * time.Second

// suite is what the tests share.
type suite struct {
	// program builds a program, or finds it in COFFER_BIN.
	plain, pkcs11 func() (string, error)
	// processor is the one software TEE, root the file of its root.
	processor *softtee.Processor
	root      string
	launch    measure.Launch
	// measurement is that of launch, in hex, known before anything is launched.
	measurement string
	postgres    pgtest.Shared
}

// the is set once, by TestMain.
var the *suite

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "coffer-trustee-test-")
	if err == nil {
		the, err = newSuite(dir)
	}
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := hsmtest.Main(m)
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func newSuite(dir string) (*suite, error) {
	s := &suite{
		plain:  sync.OnceValues(func() (string, error) { return program(dir, "coffer-trustee", "0") }),
		pkcs11: sync.OnceValues(func() (string, error) { return program(dir, "coffer-trustee-pkcs11", "1") }),
		root:   filepath.Join(dir, "development.pem"),
		launch: measure.Launch{Firmware: make([]byte, 4096), Kernel: []byte("kernel"), Initrd: []byte("initrd"), Cmdline: "console=ttyS0", VCPUs: 2, VCPUModel: "EPYC-v4"},
	}
	var err error
	if s.processor, err = softtee.LoadOrCreate(filepath.Join(dir, "soft"), rand.Reader, time.Now()); err != nil {
		return nil, err
	}
	digest, err := measure.SNP(s.launch)
	if err != nil {
		return nil, err
	}
	s.measurement = hex.EncodeToString(digest[:])
	return s, os.WriteFile(s.root, s.processor.RootPEM(), 0o600)
}

// program finds or builds one of the programs.
func program(dir, name, cgo string) (string, error) {
	if bin := os.Getenv("COFFER_BIN"); bin != "" {
		path := filepath.Join(bin, name)
		_, err := os.Stat(path)
		return path, err
	}
	out := filepath.Join(dir, name)
	cmd := exec.CommandContext(context.Background(), "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", out, "../../cmd/coffer-trustee")
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo, "GOFLAGS=")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, text)
	}
	return out, nil
}

// document is a pod's initdata.
const document = "version = \"0.1.0\"\nalgorithm = \"sha384\"\n\n[data]\n\"aa.toml\" = \"x = 1\"\n"

// digest is initdata's, and field what of it the evidence holds.
func digest(t testing.TB, doc string) (digest string, field [32]byte) {
	t.Helper()
	_, d, err := initdata.Digest([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(d), [32]byte(tee.Fit(d, 32))
}

// pod launches a software TEE with initdata ("" for none) and returns what
// attests it. Another kernel command line makes another measurement.
func pod(t testing.TB, doc, cmdline string) tee.Attester {
	t.Helper()
	l, p := the.launch, softtee.Policy{}
	l.Cmdline += cmdline
	if doc != "" {
		_, p.HostData = digest(t, doc)
	}
	g, err := the.processor.Launch(l, p)
	if err != nil {
		t.Fatal(err)
	}
	return softport.New(func(context.Context) (io.ReadWriteCloser, error) {
		guest, host := net.Pipe()
		go func() { _ = g.Serve(t.Context(), host) }()
		return guest, nil
	})
}
