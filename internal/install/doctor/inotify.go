package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Numbers of inotify instances that a node needs.
const (
	// defaultPods is how many pods a kubelet runs unless it is told otherwise
	// (kubernetes@v1.35.4 pkg/kubelet/apis/config/v1beta1, MaxPods).
	defaultPods = 110
	// otherInstances are those of systemd, the kubelet, containerd and what else root runs.
	otherInstances = 64
)

// inotify: each pod with files that Kubernetes writes has an instance, all of root's.
func (r *Report) inotify(o Options) {
	const file = "proc/sys/fs/inotify/max_user_instances"
	text, err := os.ReadFile(filepath.Join(o.Root, file))
	if err != nil {
		r.add("inotify", Optional, "whether there is an instance for each pod is not known", "%v", err)
		return
	}
	have, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 63)
	if err != nil {
		r.add("inotify", Optional, "whether there is an instance for each pod is not known", "/%s: expected a number: %v", file, err)
		return
	}
	pods := maxPods(filepath.Join(o.Root, "var/lib/kubelet/config.yaml"))
	if want := pods + otherInstances; have < want {
		r.add("inotify", Optional, fmt.Sprintf("each pod has one: write fs.inotify.max_user_instances = %d to a file in /etc/sysctl.d, and sysctl --system", roundUp(want)),
			"%d instances for root, and the kubelet runs up to %d pods", have, pods)
		return
	}
	r.add("inotify", OK, "", "%d instances for root, for up to %d pods", have, pods)
}

// maxPods is what a kubelet's configuration says, or the default: most nodes have
// it there or nowhere.
func maxPods(file string) uint64 {
	text, err := os.ReadFile(file)
	if err != nil {
		return defaultPods
	}
	m := regexp.MustCompile(`(?m)^maxPods:[ \t]*([0-9]{1,6})[ \t]*(#.*)?$`).FindSubmatch(text)
	if m == nil {
		return defaultPods
	}
	n, err := strconv.ParseUint(string(m[1]), 10, 32)
	if err != nil || n == 0 {
		return defaultPods
	}
	return n
}

// roundUp gives the next power of two.
func roundUp(n uint64) uint64 {
	p := uint64(256)
	for p < n {
		p *= 2
	}
	return p
}
