package registry_test

import (
	"bytes"
	"net/http/httptest"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	orascontent "oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/registry"
)

// TestORAS: what one client pushes the other reads, over a third party's
// registry.
func TestORAS(t *testing.T) {
	t.Parallel()
	s := httptest.NewTLSServer(newRegistry())
	t.Cleanup(s.Close)
	theirs, err := remote.NewRepository(host(s) + "/shop/web")
	if err != nil {
		t.Fatal(err)
	}
	theirs.Client = s.Client()
	ours := open(t, s, registry.Options{})
	ctx := t.Context()

	data := bytes.Repeat([]byte("ours"), 1000)
	d, err := oci.PushBytes(ctx, ours, "x/y", data)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := orascontent.FetchAll(ctx, theirs, ocispec.Descriptor{MediaType: "x/y", Digest: digest.Digest(d.Digest), Size: d.Size}); err != nil || !bytes.Equal(got, data) {
		t.Errorf("they read ours: %v", err)
	}
	data = bytes.Repeat([]byte("theirs"), 1000)
	od := orascontent.NewDescriptorFromBytes("x/y", data)
	if err := theirs.Push(ctx, od, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if got, err := oci.ReadAll(ctx, ours, oci.Descriptor{MediaType: "x/y", Digest: oci.Digest(od.Digest), Size: od.Size}, 1<<20); err != nil || !bytes.Equal(got, data) {
		t.Errorf("we read theirs: %v", err)
	}
	empty := []byte(nil)
	if _, err := oci.PushBytes(ctx, ours, "x/y", empty); err != nil {
		t.Errorf("an empty blob: %v", err)
	}
}
