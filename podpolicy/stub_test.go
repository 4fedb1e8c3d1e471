package podpolicy_test

import (
	"strings"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
)

// TestStub: a stub is a name for the policy's image, of its repositories only, and
// never what is pulled.
func TestStub(t *testing.T) {
	t.Parallel()
	p := webPolicy(t)
	stub := "sha256:" + strings.Repeat("5", 64)
	web(p).Image.Stub = stub
	g := readyGuard(t, p)
	for _, image := range []string{
		"evil.example/shop/web@" + stub, "registry.example/shop/web@" + otherDigest, "registry.example/shop/web:coffer-host@sha256:" + strings.Repeat("6", 64),
	} {
		q := webProposal()
		q.Image = image
		_, err := g.Admit(q)
		refused(t, err, podpolicy.RuleContainerImage, "image")
	}
	q := webProposal()
	q.Image = "registry.example/shop/web:coffer-host-x@" + stub
	a := must[*podpolicy.Admission](t)(g.Admit(q))
	if ref := a.Image(); ref.Digest != webDigest || ref.Tag != "" {
		t.Errorf("the stub pulls %s", ref)
	}
	img := webImage()
	img.Digest = stub
	_, err := a.Configure(img)
	refused(t, err, podpolicy.RuleContainerImage, "image")

	for _, bad := range []string{"sha256:aa", "x", webDigest} {
		web(p).Image.Stub = bad
		text, err := p.Canonical()
		if err == nil {
			_, err = podpolicy.Parse(text)
		}
		if err == nil || !strings.Contains(err.Error(), "image.stub: expected sha256:") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
