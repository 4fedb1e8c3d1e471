package node

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
)

func TestMain(m *testing.M) {
	if code, is := Init(); is {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

func testOptions(t *testing.T, containerd string) Options {
	t.Helper()
	programs := os.Getenv("COFFER_K8S_PROGRAMS")
	if programs == "" {
		var err error
		if programs, err = filepath.Abs("../../../build/k8s"); err != nil {
			t.Fatal(err)
		}
	}
	return Options{Programs: programs, Containerd: containerd, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

// TestNode runs a pod on each version of containerd, over restarts and a reboot,
// and looks for leftovers.
func TestNode(t *testing.T) {
	for _, version := range Daemons() {
		t.Run(version, func(t *testing.T) {
			n, err := Start(t.Context(), testOptions(t, version))
			if missing := (*MissingError)(nil); errors.As(err, &missing) && os.Getenv("COFFER_REQUIRE_K8S") == "" {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if t.Failed() {
					t.Log(n.LogTails(40))
				}
				if err := n.Close(); err != nil {
					t.Error(err)
				}
			}()
			if _, err := n.ServeImages(); err != nil {
				t.Fatal(err)
			}
			runOnce(t, n, "first")
			if err := n.Restart(t.Context(), "containerd", unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if err := n.Restart(t.Context(), "kubelet", unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			runOnce(t, n, "second")
			if err := n.Reboot(t.Context()); err != nil {
				t.Fatal(err)
			}
			runOnce(t, n, "third")
		})
	}
}

// runOnce runs a pod to its end and looks at what it printed.
func runOnce(t *testing.T, n *Node, name string) {
	t.Helper()
	pods := n.Client().CoreV1().Pods("default")
	class := "runc"
	_, err := pods.Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			RuntimeClassName: &class, RestartPolicy: corev1.RestartPolicyNever,
			Containers: []corev1.Container{{Name: "app", Image: AppImage, Command: []string{"sh", "-c", "echo hello from $HOSTNAME"}}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := pods.Watch(t.Context(), metav1.ListOptions{ResourceVersion: "0", FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		if p, ok := e.Object.(*corev1.Pod); ok && (p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed) {
			break
		}
	}
	out, err := pods.GetLogs(name, &corev1.PodLogOptions{}).DoRaw(t.Context())
	if err != nil || strings.TrimSpace(string(out)) != "hello from "+name {
		t.Fatalf("the pod printed %q: %v", out, err)
	}
}
