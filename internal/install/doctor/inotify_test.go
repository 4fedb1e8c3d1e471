package doctor

import (
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/host/vmm"
)

func TestInotify(t *testing.T) {
	t.Parallel()
	const instances, kubelet = "proc/sys/fs/inotify/max_user_instances=", "var/lib/kubelet/config.yaml="
	for _, tc := range []struct {
		name   string
		files  []string
		level  Level
		detail string
		help   string
	}{
		{"default", []string{instances + "128\n"}, Optional, "128 instances for root, and the kubelet runs up to 110 pods", "max_user_instances = 256"},
		{"enough", []string{instances + "1024\n"}, OK, "up to 110 pods", ""},
		{"many pods", []string{instances + "1024\n", kubelet + "kind: KubeletConfiguration\nmaxPods: 1000 # large\n"}, Optional, "up to 1000 pods", "max_user_instances = 2048"},
		{"few pods", []string{instances + "128\n", kubelet + "maxPods: 20\n"}, OK, "up to 20 pods", ""},
		{"another key", []string{instances + "1024\n", kubelet + "x:\n  maxPods: 9999\n"}, OK, "up to 110 pods", ""},
		{"no number", []string{instances + "many\n"}, Optional, "expected a number", "not known"},
		{"no file", []string{"x="}, Optional, "no such file", "not known"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, checks := inspect(t, Options{Root: machine(t, tc.files...)}, vmm.QEMU{Path: "/q", Major: 9}, nil)
			if c := checks["inotify"]; c.Level != tc.level || !strings.Contains(c.Detail, tc.detail) || !strings.Contains(c.Help, tc.help) {
				t.Errorf("%+v", c)
			}
		})
	}
}
