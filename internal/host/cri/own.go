package cri

import (
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/initdata"
)

const (
	// prefix begins this project's annotations.
	prefix = "coffer-project.io/"
	// AnnotationInitdata carries initdata: base64 of gzip of the document.
	AnnotationInitdata = kataPrefix + "config.hypervisor.cc_init_data"
	kataPrefix         = "io.katacontainers."
)

// prepared begin annotations that `coffer prepare` turns into a policy
// (podpolicy/kube). They have no meaning here, but those that ask for secrets
// must not be left unheard.
func prepared() (harmless, secret []string) {
	return []string{prefix + "allow."}, []string{prefix + "secret-env.", prefix + "secret-files.", prefix + "secure-mount."}
}

// podAnnotations takes initdata and the project's annotations out of a pod's.
func podAnnotations(all map[string]string) (own map[string]string, gz []byte, warnings []string, err error) {
	own = map[string]string{}
	var ignored []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		switch {
		case name == AnnotationInitdata:
			if gz, err = decodeInitdata(all[name]); err != nil {
				return nil, nil, nil, fmt.Errorf("annotation %s: %w", AnnotationInitdata, err)
			}
		case strings.HasPrefix(name, prefix):
			own[name] = all[name]
		case strings.HasPrefix(name, kataPrefix) && !strings.HasPrefix(name, kataPrefix+"pkg.oci."):
			ignored = append(ignored, name)
		}
	}
	if len(ignored) > 0 {
		more := ""
		const shown = 4
		if n := len(ignored) - shown; n > 0 {
			ignored, more = ignored[:shown], fmt.Sprintf(" and %d more", n)
		}
		warnings = append(warnings, fmt.Sprintf("ignored annotations of Kata Containers: %s%s", strings.Join(ignored, ", "), more))
	}
	return own, gz, warnings, nil
}

// maxGzip bounds initdata as it is sent to the guest, which takes no more.
const maxGzip = 1 << 20

// decodeInitdata reads the annotation. What is in the document is not looked at:
// the guest's reading of it counts.
func decodeInitdata(text string) ([]byte, error) {
	if text == "" {
		return nil, errors.New("expected initdata, got nothing: remove the annotation for an unsealed pod, or run coffer prepare")
	}
	if n := base64.StdEncoding.DecodedLen(len(text)); n > maxGzip+2 {
		return nil, fmt.Errorf("expected at most %d bytes of gzip data, got %d: shorten the document (coffer prepare --registry-ca lists fewer authorities)", maxGzip, n)
	}
	gz, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("expected base64 (RFC 4648, padded, no line breaks) of gzip data: %w", err)
	}
	if len(gz) > maxGzip {
		return nil, fmt.Errorf("expected at most %d bytes of gzip data, got %d", maxGzip, len(gz))
	}
	if _, err := initdata.Decompress(gz, initdata.MaxBytes); err != nil {
		return nil, fmt.Errorf("expected gzip of an initdata document of at most %d bytes: %w", initdata.MaxBytes, err)
	}
	return gz, nil
}

// CheckAnnotations refuses annotations of this project that are unknown, or that
// the handler's configuration does not let pods set, and requests for secrets
// by a pod without initdata.
func (s *Sandbox) CheckAnnotations(allowed []string) error {
	harmless, secret := prepared()
	for _, name := range slices.Sorted(maps.Keys(s.Annotations)) {
		begins := func(p string) bool { return strings.HasPrefix(name, p) }
		switch {
		case slices.Contains(allowed, name), slices.ContainsFunc(harmless, begins):
		case slices.ContainsFunc(secret, begins):
			if s.Initdata == nil {
				return fmt.Errorf("annotation %.100q asks for a secret, and the pod has no initdata: run coffer prepare on its manifest, and let containerd pass on annotations (pod_annotations of the runtime handler)", name)
			}
		default:
			list := "none"
			if len(allowed) > 0 {
				list = strings.Join(allowed, ", ")
			}
			return fmt.Errorf("annotation %.100q: this node's runtime handler lets pods set %s; remove it", name, list)
		}
	}
	return nil
}
