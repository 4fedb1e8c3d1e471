package kube_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/podpolicy/kube"
)

// images is a source of made-up images: the digest is that of the reference,
// and every image has the same configuration unless one is given.
type images map[string]podpolicy.ImageConfig

var errNoImage = errors.New("there is no such image")

const passwd = "root:x:0:0::/:/bin/sh\napp:x:1000:1001::/:/bin/sh\n"
const group = "root:x:0:\napp:x:1001:\nlogs:x:50:app\n"

func (m images) Image(_ context.Context, reference string) (*kube.Image, error) {
	ref, err := oci.ParseReference(reference)
	if err != nil {
		return nil, err
	}
	if strings.Contains(reference, "absent") {
		return nil, errNoImage
	}
	config, ok := m[reference]
	if !ok {
		config = podpolicy.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"--serve"}, Env: []string{"PATH=/bin", "IMAGE=yes"}}
	}
	sum := sha256.Sum256([]byte(ref.String()))
	return &kube.Image{
		Digest: "sha256:" + hex.EncodeToString(sum[:]), From: []string{ref.Name()}, Config: config,
		Accounts: func(context.Context) ([]byte, []byte, error) { return []byte(passwd), []byte(group), nil },
	}, nil
}

// generate writes the policies of manifests.
func generate(t *testing.T, text string, o kube.Options) (*kube.Result, error) {
	t.Helper()
	in, err := kube.Load([]kube.File{{Name: "in.yaml", Data: []byte(text)}})
	if err != nil {
		return nil, err
	}
	if o.Images == nil {
		o.Images = images{}
	}
	return kube.Generate(t.Context(), in, o)
}

// one is the policy of one workload.
func one(t *testing.T, text string, o kube.Options) *kube.Generated {
	t.Helper()
	result, err := generate(t, text, o)
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Workloads) != 1 {
		t.Fatalf("expected one workload, got %d", len(result.Workloads))
	}
	return &result.Workloads[0]
}

// golden compares with a file of testdata; COFFER_UPDATE=1 writes it.
func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if os.Getenv("COFFER_UPDATE") == "1" {
		if err := os.WriteFile(file, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != string(got) {
		t.Errorf("%s differs (COFFER_UPDATE=1 rewrites it); got:\n%s", file, got)
	}
}

// counting counts how often images are asked for.
type counting struct {
	kube.ImageSource
	asked int
}

func (c *counting) Image(ctx context.Context, reference string) (*kube.Image, error) {
	c.asked++
	return c.ImageSource.Image(ctx, reference)
}
