package run

import (
	"bytes"
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/tee/measure"
)

func startTestTrustee(t *testing.T, state string) *Trustee {
	t.Helper()
	trustee, err := StartTrustee(t.Context(), TrusteeOptions{State: state, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return trustee
}

// TestTrusteeState shows that what an embedded trustee was told is there in the
// next run, under the same authority.
func TestTrusteeState(t *testing.T) {
	t.Parallel()
	state := filepath.Join(t.TempDir(), "a", "state")
	trustee := startTestTrustee(t, state)
	uri, err := kbs.ParseResourceURI("kbs:///shop/db/password")
	if err != nil {
		t.Fatal(err)
	}
	if err := trustee.Admin.SetResource(t.Context(), uri, secret.New([]byte("value"))); err != nil {
		t.Fatal(err)
	}
	id := &Initdata{Digest: bytes.Repeat([]byte{0xab}, 32)}
	for range 2 {
		if err := Bind(t.Context(), trustee.Admin, id, []kbs.ResourceURI{uri}, "a test"); err != nil {
			t.Fatal(err)
		}
	}
	launch := measure.Launch{Firmware: make([]byte, 64<<10), Kernel: make([]byte, 64), Initrd: []byte("initrd"), VCPUs: 1, VCPUModel: "EPYC-v4"}
	for _, vcpus := range []int{1, 2, 1} {
		launch.VCPUs = vcpus
		if err := RegisterLaunch(t.Context(), trustee.Admin, launch); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := RegisterTDXLaunch(t.Context(), trustee.Admin, sandbox.TDXLaunch(launch, 512)); err != nil {
			t.Fatal(err)
		}
	}
	root := trustee.RootPEM
	if err := trustee.Close(); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(state); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the state is private: %v %v", st.Mode(), err)
	}

	trustee = startTestTrustee(t, state)
	defer func() { _ = trustee.Close() }()
	if !bytes.Equal(root, trustee.RootPEM) {
		t.Error("the next run has another authority")
	}
	bindings, err := trustee.Admin.Bindings(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(bindings) != 1 || bindings[0].Resource != "shop/db/password" || bindings[0].InitData != hex.EncodeToString(id.Digest) {
		t.Errorf("bindings: %+v", bindings)
	}
	values, err := trustee.Admin.ReferenceValues(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for _, v := range values {
		counts[v.Name] = len(v.Values)
	}
	if diff := cmp.Diff(map[string]int{measurementName: 2, "mr_td": 1, "rtmr_1": 1, "rtmr_2": 1}, counts); diff != "" {
		t.Errorf("numbers of reference values (-want +got):\n%s", diff)
	}
	uris, err := trustee.Admin.Resources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("kbs:///shop/db/password", uris[0].String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestTrusteePorts runs two at once: the second takes another port.
func TestTrusteePorts(t *testing.T) {
	t.Parallel()
	a, b := startTestTrustee(t, t.TempDir()), startTestTrustee(t, t.TempDir())
	defer func() { _ = a.Close() }()
	defer func() { _ = b.Close() }()
	if a.URL == b.URL || a.GuestURL == b.GuestURL {
		t.Errorf("both listen on %s", a.URL)
	}
	for _, trustee := range []*Trustee{a, b} {
		if _, err := trustee.Admin.Bindings(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
