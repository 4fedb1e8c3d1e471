package volumes

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Bounds on what is read from a source path and its directory.
const (
	maxSource = 4096
	maxName   = 253
)

// placeKind is what the kubelet keeps at a path of a pod's directory.
type placeKind int

const (
	// placeVolume is volumes/PLUGIN/NAME and what is below.
	placeVolume placeKind = iota + 1
	// placeSubPath is volume-subpaths/NAME/CONTAINER/NUMBER, where the kubelet
	// mounts the directory or file of a subPath.
	placeSubPath
	// placeContainer is containers/CONTAINER/ID, the file for a container's last
	// words.
	placeContainer
	// placeHosts is etc-hosts.
	placeHosts
)

// The kubelet's names for volume plugins, as directories: the slash of the
// plugin's name is a tilde (k8s.io/utils/strings.EscapeQualifiedName).
const (
	pluginConfigMap   = "kubernetes.io~configmap"
	pluginSecret      = "kubernetes.io~secret"
	pluginProjected   = "kubernetes.io~projected"
	pluginDownwardAPI = "kubernetes.io~downward-api"
	pluginEmptyDir    = "kubernetes.io~empty-dir"
)

// place is a path below a pod's directory, kubernetes@v1.35.4
// pkg/kubelet/kubelet_getters.go and pkg/volume/util/subpath.
type place struct {
	kind placeKind
	// plugin of a placeVolume, for example kubernetes.io~configmap.
	plugin string
	// volume of a placeVolume or placeSubPath: its name in the pod, or that of a
	// claim's PersistentVolume.
	volume string
	// container of a placeSubPath or placeContainer.
	container string
	// rest is what comes behind the volume's directory; empty for the volume.
	rest string
}

// atomic tells that the plugin writes whole sets of files, which a link named
// ..data leads to.
func (p place) atomic() bool {
	switch p.plugin {
	case pluginConfigMap, pluginSecret, pluginProjected, pluginDownwardAPI:
		return true
	}
	return false
}

// parsePlace reads a clean path relative to a pod's directory.
func parsePlace(rel string) (place, error) {
	if len(rel) > maxSource || !filepath.IsLocal(rel) || filepath.Clean(rel) != rel || strings.ContainsRune(rel, 0) {
		return place{}, fmt.Errorf("expected a path inside the pod's directory, got %q", clip(rel))
	}
	parts := strings.Split(rel, "/")
	for _, part := range parts {
		if len(part) > maxName+2 {
			return place{}, fmt.Errorf("expected names of at most %d characters, got %q", maxName, clip(part))
		}
	}
	switch {
	case rel == "etc-hosts":
		return place{kind: placeHosts}, nil
	case parts[0] == "containers" && len(parts) == 3:
		return place{kind: placeContainer, container: parts[1]}, nil
	case parts[0] == "volume-subpaths" && len(parts) == 4 && isNumber(parts[3]):
		return place{kind: placeSubPath, volume: parts[1], container: parts[2]}, nil
	case parts[0] == "volumes" && len(parts) >= 3:
		return place{kind: placeVolume, plugin: parts[1], volume: parts[2], rest: strings.Join(parts[3:], "/")}, nil
	}
	return place{}, fmt.Errorf("expected volumes/PLUGIN/NAME, volume-subpaths/NAME/CONTAINER/NUMBER, containers/NAME/ID or etc-hosts in the pod's directory, got %q", clip(rel))
}

func isNumber(s string) bool { return s != "" && len(s) <= 6 && strings.Trim(s, "0123456789") == "" }

// tokenPrefix is how the API server begins the name of the volume that it adds
// for the API server's token (kubernetes@v1.35.4
// plugin/pkg/admission/serviceaccount); five characters of tokenAlphabet follow
// (apimachinery util/rand).
const (
	tokenPrefix   = "kube-api-access"
	tokenAlphabet = "bcdfghjklmnpqrstvwxz2456789"
)

// guestName is what a volume is called in the guest, and in a pod policy: the
// name that it has in the pod, but for the generated one of the API server's
// token.
func guestName(p place) string {
	random, ok := strings.CutPrefix(p.volume, tokenPrefix+"-")
	if ok && p.plugin == pluginProjected && len(random) == 5 && strings.Trim(random, tokenAlphabet) == "" {
		return tokenPrefix
	}
	return p.volume
}

// isLabel: a DNS label, which is what the guest takes as a volume's name.
func isLabel(s string) bool {
	return s != "" && len(s) <= 63 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && s[0] != '-' && s[len(s)-1] != '-'
}

// clip shortens what somebody else wrote for an error.
func clip(s string) string {
	const most = 200
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
