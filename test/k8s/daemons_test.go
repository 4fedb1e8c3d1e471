package k8s

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/coffer-project/coffer/test/k8s/node"
)

// TestDaemons runs some rows on each other version of containerd, and with
// sandboxes that the shim makes itself: daemons start shims in different ways.
// Pods are processes here; what a machine does is the same for all daemons.
func TestDaemons(t *testing.T) {
	if the.core {
		t.Skip("COFFER_K8S=core")
	}
	if !slices.Contains(the.handlers, node.HandlerProcess) {
		t.Skip("COFFER_K8S_HANDLERS has not " + node.HandlerProcess)
	}
	rows := slices.DeleteFunc(table(), func(r row) bool {
		return !slices.Contains([]string{
			"k8s-exec", "k8s-exec/terminal", "k8s-attach-handlers", "logs", "k8s-port-forward", "k8s-configmap", "k8s-hostname", "k8s-custom-dns",
			"k8s-nginx-connectivity", "k8s-graceful-termination", "init-containers", "refused/hostNetwork", "no-program",
			"restart/containerd", "restart/reboot", "killed/shim", "killed/agent",
		}, r.id)
	})
	for _, d := range []struct{ name, version, sandboxer string }{
		{"2.2-sandboxer-shim", "2.2", "shim"}, {"2.4", "2.4", ""}, {"2.4-sandboxer-shim", "2.4", "shim"}, {"1.6", "1.6", ""},
	} {
		t.Run(d.name, func(t *testing.T) {
			needHandler(t, node.HandlerProcess)
			n, err := the.startNode(d.version, d.sandboxer)
			if missing := (*node.MissingError)(nil); errors.As(err, &missing) && os.Getenv("COFFER_REQUIRE_K8S") == "" {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := n.Close(); err != nil {
					t.Error(err)
				}
			}()
			if _, err := n.ServeImages(); err != nil {
				t.Fatal(err)
			}
			h := newHandler(n, node.HandlerProcess)
			h.label = node.HandlerProcess + " on containerd " + d.name
			before, err := n.Inventory()
			if err != nil {
				t.Fatal(err)
			}
			h.all(t, slices.DeleteFunc(slices.Clone(rows), func(r row) bool {
				// containerd 2.2.9 itself dies of it (core/runtime/v2/bundle.go: no spec).
				return d.version == "2.2" && d.sandboxer == "shim" && r.id == "refused/hostNetwork"
			}))
			if err := n.Settle(t.Context(), before, 2*time.Minute); err != nil {
				t.Error(err)
			}
		})
	}
}
