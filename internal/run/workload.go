package run

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/podpolicy/kube"
)

// AnnotationInitdata is the annotation of a pod in which its initdata travels.
const AnnotationInitdata = "io.katacontainers.config.hypervisor.cc_init_data"

// maxAnnotations is how much all annotations of an object may hold (Kubernetes,
// apimachinery, TotalAnnotationSizeLimitB).
const maxAnnotations = 256 << 10

// WorkloadImages finds the images of manifests. It is an open
// [kube.ImageSource]; Close ends it.
type WorkloadImages struct {
	// Options say how registries are reached. Spool is set by OpenWorkloadImages.
	Options ImageOptions
	// Local has, by references of manifests without their digest, names as
	// OpenSource takes them: what a registry will have under the reference.
	Local map[string]string

	spool   string
	sources []*Source
	// configs by digests of images.
	configs map[string]*oci.ImageConfig
}

// OpenWorkloadImages makes a source of images.
func OpenWorkloadImages(o ImageOptions, local map[string]string) (*WorkloadImages, error) {
	spool, err := os.MkdirTemp("", "coffer-prepare-")
	if err != nil {
		return nil, err
	}
	return &WorkloadImages{Options: o, Local: local, spool: spool, configs: map[string]*oci.ImageConfig{}}, nil
}

// Close ends the reading of images.
func (w *WorkloadImages) Close() error {
	var errs []error
	for _, s := range w.sources {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(w.spool))...)
}

// Image implements kube.ImageSource.
func (w *WorkloadImages) Image(ctx context.Context, reference string) (*kube.Image, error) {
	return w.image(ctx, reference, true)
}

// image follows a stub once at most.
func (w *WorkloadImages) image(ctx context.Context, reference string, follow bool) (*kube.Image, error) {
	name, err := oci.ParseReference(reference)
	if err != nil {
		return nil, err
	}
	o, from := w.Options, "docker://"+reference
	tagged, _, _ := strings.Cut(reference, "@")
	if local, ok := w.Local[tagged]; ok {
		from = local
	}
	if o.Spool, err = os.MkdirTemp(w.spool, ""); err != nil {
		return nil, err
	}
	src, err := OpenSource(ctx, from, o)
	if err != nil {
		return nil, err
	}
	w.sources = append(w.sources, src)
	var img Image
	if err := img.resolve(ctx, src, src.Ref); err != nil {
		return nil, fmt.Errorf("image %s: %w", reference, err)
	}
	if name.Digest != "" && name.Digest != img.Ref.Digest {
		return nil, fmt.Errorf("image %s: %s has the digest %s", reference, from, img.Ref.Digest)
	}
	if real, is, err := stubbed(ctx, src, img.Ref); err != nil {
		return nil, fmt.Errorf("image %s: %w", reference, err)
	} else if is {
		// A manifest that was prepared before.
		if !follow || name.Tag != "" && !strings.HasPrefix(name.Tag, stubTag) {
			return nil, fmt.Errorf("image %s: it is a stub of %s, which is no image to name in a manifest", reference, real)
		}
		return w.image(ctx, name.Name()+"@"+real.String(), false)
	}
	w.configs[img.Ref.Digest.String()] = img.Config
	return &kube.Image{
		Digest: img.Ref.Digest.String(), From: []string{name.Name()}, Config: imageConfig(img.Config.Config), LayerKeys: img.LayerKeys,
		Accounts: func(ctx context.Context) (passwd, group []byte, err error) {
			_, manifest, err := build.Inspect(ctx, src, img.Ref, oci.GuestPlatform())
			if err != nil {
				return nil, nil, err
			}
			return readAccounts(ctx, src, manifest)
		},
	}, nil
}

// Pinned is a manifest's reference with the digest that it stands for.
func Pinned(reference, digest string) string {
	name, _, _ := strings.Cut(reference, "@")
	if i := strings.LastIndex(name, ":"+stubTag); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	return name + "@" + digest
}

// Workload is a workload of manifests with everything that it needs.
type Workload struct {
	*kube.Generated
	// Document is its policy, canonical.
	Document []byte
	Initdata *Initdata
	// Annotation is the initdata as the pod carries it.
	Annotation string
	// Resources are what the trustee must have, and bind to the initdata.
	Resources []kbs.ResourceURI
}

// PrepareWorkload writes the policy and the initdata of a workload. The policy
// of o is not used.
func PrepareWorkload(g *kube.Generated, o InitdataOptions) (*Workload, error) {
	w := &Workload{Generated: g}
	var err error
	if w.Document, err = g.Policy.Canonical(); err != nil {
		return nil, err
	}
	o.Policy = w.Document
	if w.Initdata, err = NewInitdata(o); err != nil {
		return nil, fmt.Errorf("%s: %w", g.Workload, err)
	}
	if w.Annotation, err = initdata.EncodeAnnotation(w.Initdata.Raw); err != nil {
		return nil, err
	}
	if n := len(AnnotationInitdata) + len(w.Annotation); n > maxAnnotations {
		err := fmt.Errorf("%s: initdata makes an annotation of %d bytes, and Kubernetes takes %d", g.Workload, n, maxAnnotations)
		return nil, hint.New(err, "name the registry's authority alone with --registry-ca, instead of all that this machine trusts")
	}
	var layerKeys []string
	for _, i := range g.Images {
		layerKeys = append(layerKeys, i.LayerKeys...)
	}
	w.Resources, err = Resources(g.Policy, o, layerKeys)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", g.Workload, err)
	}
	for _, r := range w.Resources {
		name := r.Trustee()
		declared := name == ""
		for _, t := range o.Trustees {
			declared = declared || t.Name == name
		}
		if !declared {
			return nil, hint.New(fmt.Errorf("%s: %s: initdata declares no trustee %s", g.Workload, r, name), "declare it with --named-trustee "+name+"=https://…")
		}
		if name == "" && o.TrusteeURL == "" {
			return nil, hint.New(fmt.Errorf("%s: it needs %s, and has no trustee", g.Workload, r), "name one with --trustee https://…")
		}
	}
	return w, nil
}

// Change is what is written into the workload's manifest.
func (w *Workload) Change(runtimeClass string) kube.Change {
	c := kube.Change{Workload: w.Workload, Annotations: map[string]string{AnnotationInitdata: w.Annotation}, RuntimeClass: runtimeClass, Images: map[string]string{}}
	for reference, image := range w.Images {
		c.Images[reference] = Pinned(reference, image.Digest)
	}
	return c
}

// DigestHex is the initdata's digest, as bindings have it.
func (w *Workload) DigestHex() string { return hex.EncodeToString(w.Initdata.Digest) }

// SortedImages are the references of the manifest.
func (w *Workload) SortedImages() []string {
	var list []string
	for reference := range w.Images {
		list = append(list, reference)
	}
	slices.Sort(list)
	return list
}
