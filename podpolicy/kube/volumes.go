package kube

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/coffer-project/coffer/podpolicy"
)

// tokenVolume is the name, in policies, of the volume that the API server adds
// to a pod with the token of its service account. There it is called
// kube-api-access-XXXXX.
const tokenVolume = "kube-api-access"

// tokenPath is where that volume is mounted.
const tokenPath = "/var/run/secrets/kubernetes.io/serviceaccount"

// maxHostFiles bounds what the host may put into a volume.
const maxHostFiles = 64 << 10

// volume is a volume of the pod in the making.
type volume struct {
	podpolicy.Volume
	// field of the PodSpec that it comes from.
	field string
	// mount of a block volume's file system; empty for a device.
	mount    string
	readOnly bool
	used     bool
	// unset: it could not be made, which has been reported.
	unset bool
	// hostModes are the permissions of files that the host chooses.
	hostModes map[string]bool
}

// findVolumes makes the pod's volumes.
func (g *generator) findVolumes() {
	for i := range g.spec.Volumes {
		v := &g.spec.Volumes[i]
		field := element("volumes", i)
		if g.volumes[v.Name] != nil {
			g.bad(field+".name", "", "volume %s is there twice", clip(v.Name))
			continue
		}
		g.volumes[v.Name] = g.volume(field, v)
	}
	for i := range g.w.claims {
		c := &g.w.claims[i]
		// A template of the same name comes before a volume.
		g.volumes[c.Name] = g.block("", c.Name, c, false)
	}
	if g.automount() {
		g.volumes[tokenVolume] = &volume{Volume: podpolicy.Volume{Kind: podpolicy.VolumeFiles, Host: &podpolicy.HostFiles{
			Names: []string{"ca.crt", "namespace", "token"}, MaxBytes: maxHostFiles, Mode: "0644",
		}, Group: g.fsGroup()}, field: "serviceAccountName"}
	}
}

// automount follows the ServiceAccount admission controller.
func (g *generator) automount() bool {
	if g.spec.AutomountServiceAccountToken != nil {
		return *g.spec.AutomountServiceAccountToken
	}
	account := find(g.in.objects.accounts, g.namespace(), g.serviceAccount())
	return account == nil || account.object.AutomountServiceAccountToken == nil || *account.object.AutomountServiceAccountToken
}

func (g *generator) volume(field string, v *corev1.Volume) *volume {
	s := &v.VolumeSource
	out := &volume{field: field, hostModes: map[string]bool{}}
	switch {
	case s.EmptyDir != nil:
		out.Kind, out.Medium = podpolicy.VolumeEphemeral, podpolicy.MediumDisk
		if s.EmptyDir.Medium == corev1.StorageMediumMemory {
			out.Medium = podpolicy.MediumMemory
		}
		if l := s.EmptyDir.SizeLimit; l != nil && l.Sign() > 0 {
			out.Size.Bytes = uint64(l.Value())
		}
		out.Group = g.fsGroup()
		return out
	case s.PersistentVolumeClaim != nil:
		return g.block(field, v.Name, g.claim(s.PersistentVolumeClaim.ClaimName), s.PersistentVolumeClaim.ReadOnly)
	case s.ConfigMap != nil:
		out.start(g.fsGroup(), s.ConfigMap.DefaultMode)
		g.configMapFiles(field+".configMap", out, s.ConfigMap.Name, s.ConfigMap.Items, s.ConfigMap.Optional)
	case s.Secret != nil:
		out.start(g.fsGroup(), s.Secret.DefaultMode)
		g.secretFiles(field+".secret", v.Name, out, s.Secret.SecretName, s.Secret.Items, s.Secret.Optional)
	case s.DownwardAPI != nil:
		out.start(g.fsGroup(), s.DownwardAPI.DefaultMode)
		g.downwardFiles(field+".downwardAPI", out, s.DownwardAPI.Items)
	case s.Projected != nil:
		out.start(g.fsGroup(), s.Projected.DefaultMode)
		g.projected(field+".projected", v.Name, out, s.Projected.Sources)
	default:
		// A source that is refused, or none: Kubernetes takes that for an emptyDir.
		out.unset = true
		if *s == (corev1.VolumeSource{}) {
			g.bad(field, "write emptyDir: {}", "volume %s has no source", clip(v.Name))
		}
		return out
	}
	g.secretResources(v.Name, out)
	g.finishFiles(field, v.Name, out)
	return out
}

func (g *generator) fsGroup() *uint32 {
	if sc := g.spec.SecurityContext; sc != nil && sc.FSGroup != nil {
		return g.id("securityContext.fsGroup", *sc.FSGroup)
	}
	return nil
}

// block is a claim whose device the guest opens with a key of the trustee.
func (g *generator) block(field, name string, claim *corev1.PersistentVolumeClaim, readOnly bool) *volume {
	mark, ok := g.marks.mounts[name]
	at := field
	if field == "" {
		at = "volumes"
	}
	switch {
	case !ok:
		g.bad(at, "annotate the pod template with "+AnnotationMount+name+`: '{"key":"kbs:///…","mount":"/data"}'`, "volume %s is a claim without a key: what is written there, the host could read", clip(name))
		return &volume{field: at, unset: true}
	case claim != nil && (claim.Spec.VolumeMode == nil || *claim.Spec.VolumeMode != corev1.PersistentVolumeBlock):
		g.bad(at, "set volumeMode: Block in the claim", "volume %s is a file system of the host's: the guest needs the device", clip(name))
		return &volume{field: at, unset: true}
	case mark.Mount == "" && mark.Filesystem != "":
		g.badMeta(AnnotationMount+name, "write mount", "filesystem without mount")
	}
	v := &volume{field: at, mount: mark.Mount, readOnly: readOnly || mark.ReadOnly}
	v.Kind, v.Key, v.Filesystem = podpolicy.VolumeBlock, mark.Key, mark.Filesystem
	if mark.Mount != "" {
		if v.Filesystem == "" {
			v.Filesystem = "ext4"
		}
		v.Group = g.fsGroup()
	}
	return v
}

// start begins a volume of files.
func (v *volume) start(group *uint32, mode *int32) {
	v.Kind, v.Group, v.Mode = podpolicy.VolumeFiles, group, "0644"
	if mode != nil {
		v.Mode = octal(*mode)
	}
	v.Pinned, v.Sealed, v.Resources, v.Modes = map[string]string{}, map[string]string{}, map[string]string{}, map[string]string{}
	v.Host = &podpolicy.HostFiles{MaxBytes: maxHostFiles}
}

// has reports whether the volume has a file of the name already.
func (v *volume) has(name string) bool {
	_, pinned := v.Pinned[name]
	_, sealed := v.Sealed[name]
	return pinned || sealed || slices.Contains(v.Host.Names, name)
}

func (g *generator) addFile(field string, v *volume, name, content string, mode *int32) {
	if v.has(name) {
		g.bad(field, "", "file %s is there twice", clip(name))
		return
	}
	if strings.HasPrefix(content, "sealed.") {
		v.Sealed[name] = strings.TrimSuffix(content, "\n")
	} else {
		v.Pinned[name] = sha256Of([]byte(content))
	}
	if mode != nil && octal(*mode) != v.Mode {
		v.Modes[name] = octal(*mode)
	}
}

func sha256Of(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (g *generator) configMapFiles(field string, v *volume, name string, items []corev1.KeyToPath, optional *bool) {
	m := g.configMap(field, name, optional)
	if m == nil {
		return
	}
	contents := maps.Clone(m.object.Data)
	if contents == nil {
		contents = map[string]string{}
	}
	for k, data := range m.object.BinaryData {
		contents[k] = string(data)
	}
	g.keyFiles(field, v, contents, items, optional)
}

func (g *generator) secretFiles(field, volumeName string, v *volume, name string, items []corev1.KeyToPath, optional *bool) {
	if len(g.marks.files[volumeName]) > 0 && find(g.in.objects.secrets, g.namespace(), name) == nil {
		return // its files come from the trustee
	}
	s := g.secret(field, name, optional)
	if s == nil {
		return
	}
	keys := slices.Sorted(maps.Keys(s.values))
	if len(items) > 0 {
		keys = nil
		for _, i := range items {
			keys = append(keys, i.Key)
		}
	}
	g.plainSecret(s, field, keys, "the host has it, and the policy makes its digest public")
	g.keyFiles(field, v, s.values, items, optional)
}

// keyFiles makes files of keys: those of items, or all.
func (g *generator) keyFiles(field string, v *volume, contents map[string]string, items []corev1.KeyToPath, optional *bool) {
	if len(items) == 0 {
		for _, key := range slices.Sorted(maps.Keys(contents)) {
			g.addFile(field, v, key, contents[key], nil)
		}
		return
	}
	for i, item := range items {
		at := element(field+".items", i)
		content, ok := contents[item.Key]
		switch {
		case ok:
			g.addFile(at, v, item.Path, content, item.Mode)
		case optional == nil || !*optional:
			g.bad(at+".key", "", "there is no key %s", clip(item.Key))
		}
	}
}

func (g *generator) downwardFiles(field string, v *volume, items []corev1.DownwardAPIVolumeFile) {
	for i, item := range items {
		at := element(field+".items", i)
		switch {
		case item.ResourceFieldRef != nil:
			if text, ok := g.resourceValue(at+".resourceFieldRef", item.ResourceFieldRef, nil); ok {
				g.addFile(at, v, item.Path, text, item.Mode)
			}
		case item.FieldRef != nil:
			g.hostFile(at, v, item.Path, item.Mode)
		default:
			g.bad(at, "", "expected fieldRef or resourceFieldRef")
		}
	}
}

// hostFile leaves a file's contents to the host.
func (g *generator) hostFile(field string, v *volume, name string, mode *int32) {
	if v.has(name) {
		g.bad(field, "", "file %s is there twice", clip(name))
		return
	}
	v.Host.Names = append(v.Host.Names, name)
	m := v.Mode
	if mode != nil {
		m = octal(*mode)
	}
	v.hostModes[m] = true
}

func (g *generator) projected(field, volumeName string, v *volume, sources []corev1.VolumeProjection) {
	for i := range sources {
		s, at := &sources[i], element(field+".sources", i)
		switch {
		case s.ConfigMap != nil:
			g.configMapFiles(at+".configMap", v, s.ConfigMap.Name, s.ConfigMap.Items, s.ConfigMap.Optional)
		case s.Secret != nil:
			g.secretFiles(at+".secret", volumeName, v, s.Secret.Name, s.Secret.Items, s.Secret.Optional)
		case s.DownwardAPI != nil:
			g.downwardFiles(at+".downwardAPI", v, s.DownwardAPI.Items)
		case s.ServiceAccountToken != nil:
			g.hostFile(at, v, s.ServiceAccountToken.Path, nil)
		case s.ClusterTrustBundle != nil:
			g.hostFile(at, v, s.ClusterTrustBundle.Path, nil)
		case s.PodCertificate == nil: // which is refused
			g.bad(at, "", "expected a source")
		}
	}
}

// secretResources takes files of the volume from the trustee. The host puts
// none of that name: what the manifest has there must not be.
func (g *generator) secretResources(name string, v *volume) {
	for _, file := range slices.Sorted(maps.Keys(g.marks.files[name])) {
		if v.has(file) {
			g.badMeta(AnnotationFiles+name, "remove it from its ConfigMap or Secret", "file %s has contents of its own in the manifests", clip(file))
			continue
		}
		v.Resources[file] = g.marks.files[name][file]
	}
}

func (g *generator) finishFiles(field, name string, v *volume) {
	if len(v.Host.Names) == 0 {
		v.Host = nil
	} else {
		modes := slices.Sorted(maps.Keys(v.hostModes))
		if len(modes) > 1 {
			g.bad(field, "give them one mode", "files of the host with the modes %s", strings.Join(modes, " and "))
		}
		v.Host.Mode = modes[0]
	}
	if len(v.Pinned)+len(v.Sealed)+len(v.Resources) == 0 && v.Host == nil && !v.unset {
		g.note(field, "", "volume %s has no files: containers find an empty directory", clip(name))
	}
	if len(v.Pinned)+len(v.Sealed)+len(v.Resources) == 0 {
		v.Mode = ""
	}
	for _, m := range []*map[string]string{&v.Pinned, &v.Sealed, &v.Resources, &v.Modes} {
		if len(*m) == 0 {
			*m = nil
		}
	}
}

// policyVolumes puts the volumes that containers have into the policy.
func (g *generator) policyVolumes() {
	for name, v := range g.volumes {
		if v.used && !v.unset {
			if g.policy.Volumes == nil {
				g.policy.Volumes = map[string]podpolicy.Volume{}
			}
			g.policy.Volumes[name] = v.Volume
		}
	}
	for _, name := range slices.Sorted(maps.Keys(g.volumes)) {
		if v := g.volumes[name]; !v.used && name != tokenVolume {
			g.note(v.field, "", "no container has volume %s, which is left out", clip(name))
		}
	}
}
