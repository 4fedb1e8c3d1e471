package cli_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/softtee"
	"github.com/coffer-project/coffer/tee/softtee/softport"
)

// flip copies a file with one bit of a byte changed: flip FROM TO OFFSET.
func flip(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: flip FROM TO OFFSET")
	}
	data := []byte(ts.ReadFile(args[0]))
	at, err := strconv.Atoi(args[2])
	ts.Check(err)
	data[at] ^= 1
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), data, 0o600))
}

// cut copies the beginning of a file: cut FROM TO SIZE.
func cut(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: cut FROM TO SIZE")
	}
	size, err := strconv.Atoi(args[2])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(ts.ReadFile(args[0]))[:size], 0o600))
}

// join writes files one after the other: join TO FROM….
func join(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: join TO FROM…")
	}
	var all []byte
	for _, name := range args[1:] {
		all = append(all, ts.ReadFile(name)...)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), all, 0o600))
}

// isVerdict checks the form of what `evidence verify --output json` printed:
// verdict TEE true|false [FAILURE-OR-WARNING…], with the checks that are named.
func isVerdict(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: verdict TEE true|false [CHECK…]")
	}
	type finding struct{ Check, Field, Expected, Got, Help *string }
	var v struct {
		TEE       *string         `json:"tee"`
		Verified  *bool           `json:"verified"`
		Claims    map[string]any  `json:"claims"`
		Failures  []finding       `json:"failures"`
		Warnings  []finding       `json:"warnings"`
		Simulated *bool           `json:"simulated"`
		Devices   json.RawMessage `json:"devices"`
	}
	d := json.NewDecoder(bytes.NewReader([]byte(ts.ReadFile("stdout"))))
	d.DisallowUnknownFields()
	ts.Check(d.Decode(&v))
	if v.TEE == nil || v.Verified == nil || v.Simulated == nil || v.Claims == nil || v.Failures == nil || v.Warnings == nil {
		ts.Fatalf("a member is missing or null")
	}
	if *v.TEE != args[0] || strconv.FormatBool(*v.Verified) != args[1] {
		ts.Fatalf("expected %s %s, got %s %t", args[0], args[1], *v.TEE, *v.Verified)
	}
	if *v.Verified != (len(v.Failures) == 0) || *v.Verified && len(v.Claims) == 0 {
		ts.Fatalf("verified %t, %d failures, %d claims", *v.Verified, len(v.Failures), len(v.Claims))
	}
	checks := map[string]bool{}
	for _, f := range append(v.Failures, v.Warnings...) {
		if f.Check == nil || f.Field == nil || f.Expected == nil || f.Got == nil || f.Help == nil || *f.Check == "" || *f.Field == "" {
			ts.Fatalf("a finding lacks members: %s", ts.ReadFile("stdout"))
		}
		checks[*f.Check] = true
	}
	for _, want := range args[2:] {
		if !checks[want] {
			ts.Fatalf("expected a finding %s, got %v", want, checks)
		}
		delete(checks, want)
	}
	for unexpected := range checks {
		ts.Fatalf("unexpected finding %s", unexpected)
	}
}

// mksoft writes evidence of the software TEE, its root, and the reference value of
// its measurement: mksoft EVIDENCE ROOT REFERENCE. The evidence's report data is 0x01 and zeros, its HOST_DATA 0x02 and zeros.
func mksoft(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: mksoft EVIDENCE ROOT REFERENCE")
	}
	p, err := softtee.LoadOrCreate(ts.MkAbs("soft"), rand.Reader, time.Now())
	ts.Check(err)
	g, err := p.Launch(measure.Launch{
		Firmware: make([]byte, 8192), Kernel: []byte("kernel"), Initrd: []byte("initrd"), Cmdline: "quiet", VCPUs: 1, VCPUModel: "EPYC-v4",
	}, softtee.Policy{HostData: [32]byte{2}})
	ts.Check(err)
	port := func(context.Context) (io.ReadWriteCloser, error) {
		guest, host := net.Pipe()
		go func() { _ = g.Serve(context.Background(), host) }() // ends when the guest closes
		return guest, nil
	}
	evidence, err := softport.New(port).Evidence(context.Background(), []byte{1})
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), evidence, 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), p.RootPEM(), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), fmt.Appendf(nil, `{"snp_launch_measurement":"%x"}`, g.Measurement()), 0o600))
}
