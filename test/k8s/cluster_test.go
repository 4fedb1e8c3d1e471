package k8s

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"

	"github.com/coffer-project/coffer/test/k8s/node"
)

// handler is one run of the table.
type handler struct {
	n    *node.Node
	name string
	// label stands in the report.
	label string
	// parallel has room for each row that may run at once.
	parallel chan struct{}

	mu       sync.Mutex
	fixtures map[string]*fixture

	siteOnce sync.Once
	site     *site
	siteErr  error
}

func newHandler(n *node.Node, name string) *handler {
	// Two processors emulate two machines.
	at := 2
	if kindOf(name) != onMachine {
		at = 4
	}
	return &handler{n: n, name: name, label: name, parallel: make(chan struct{}, at), fixtures: map[string]*fixture{}}
}

// patience is how long one step of a pod may take.
func (h *handler) patience() time.Duration {
	if kindOf(h.name) == onMachine {
		return 5 * time.Minute
	}
	return 90 * time.Second
}

// space is a namespace in which objects are made.
type space struct {
	h  *handler
	n  *node.Node
	ns string
}

// cluster is what a row has: a namespace of its own, made when it is first used,
// and the pods that it shares with others.
type cluster struct {
	*space
	id   string
	once sync.Once
}

func (h *handler) cluster(t *testing.T, id string) *cluster {
	t.Helper()
	plain := regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(id), "-")
	return &cluster{id: id, space: &space{h: h, n: h.n, ns: strings.Trim(fmt.Sprintf("%.40s-%s", plain, strings.TrimPrefix(h.name, "coffer-")), "-")}}
}

// apply makes the objects of YAML documents in the row's namespace.
func (c *cluster) apply(t *testing.T, text string) {
	t.Helper()
	c.own(t)
	if err := c.create(t.Context(), text); err != nil {
		t.Fatal(err)
	}
}

// own makes the row's namespace, if it has none yet.
func (c *cluster) own(t *testing.T) {
	t.Helper()
	c.once.Do(func() {
		if err := c.makeNamespace(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if t.Failed() {
				t.Log(c.describe())
			}
			if err := c.removeNamespace(); err != nil {
				t.Error(err)
			}
		})
	})
}

func (s *space) makeNamespace(ctx context.Context) error {
	_, err := s.n.Client().CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.ns}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return until(ctx, "the namespace's service account", func() error {
		_, err := s.n.Client().CoreV1().ServiceAccounts(s.ns).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// removeNamespace removes a namespace with all that is in it, and waits until it
// has gone: a pod that cannot be deleted is an error.
func (s *space) removeNamespace() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	namespaces := s.n.Client().CoreV1().Namespaces()
	if err := namespaces.Delete(ctx, s.ns, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	return until(ctx, "the end of namespace "+s.ns, func() error {
		_, err := namespaces.Get(ctx, s.ns, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		pods, listErr := s.n.Client().CoreV1().Pods(s.ns).List(ctx, metav1.ListOptions{})
		if listErr == nil && len(pods.Items) > 0 {
			return fmt.Errorf("pod %s is still there: %s", pods.Items[0].Name, pods.Items[0].Status.Phase)
		}
		return errors.Join(err, errors.New("it is still there"))
	})
}

// until calls f until it succeeds or ctx ends. Where an object tells of its
// changes, [space.waitPod] watches it instead.
func until(ctx context.Context, what string, f func() error) error {
	tick := time.NewTicker(150 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w; last: %w", what, ctx.Err(), err)
		}
	}
}

// eventually fails the test where f does not succeed in time.
func (s *space) eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), s.h.patience())
	defer cancel()
	if err := until(ctx, what, f); err != nil {
		t.Fatal(err)
	}
}

// create makes the objects of YAML documents. Pods, and templates of pods, get
// the handler's runtime class, the tests' image, and little time to end, where the
// document does not say otherwise.
func (s *space) create(ctx context.Context, text string) error {
	client, err := dynamic.NewForConfig(s.n.Config())
	if err != nil {
		return err
	}
	objects, err := decode(text)
	if err != nil {
		return err
	}
	for _, o := range objects {
		s.complete(o.Object)
		resource, err := resourceOf(o)
		if err != nil {
			return err
		}
		var where dynamic.ResourceInterface = client.Resource(resource)
		if o.GetKind() != "PersistentVolume" {
			where = client.Resource(resource).Namespace(s.ns)
		}
		if _, err := where.Create(ctx, o, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("%s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
	return nil
}

func decode(text string) ([]*unstructured.Unstructured, error) {
	d := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096)
	var list []*unstructured.Unstructured
	for {
		o := map[string]any{}
		if err := d.Decode(&o); errors.Is(err, io.EOF) {
			return list, nil
		} else if err != nil {
			return nil, fmt.Errorf("%w in:\n%s", err, text)
		}
		if len(o) == 0 {
			continue
		}
		u := &unstructured.Unstructured{Object: o}
		if u.GetAPIVersion() == "" {
			u.SetAPIVersion("v1")
		}
		list = append(list, u)
	}
}

func resourceOf(o *unstructured.Unstructured) (schema.GroupVersionResource, error) {
	plural := map[string]string{
		"Pod": "pods", "ConfigMap": "configmaps", "Secret": "secrets", "Service": "services", "Deployment": "deployments",
		"StatefulSet": "statefulsets", "Job": "jobs", "CronJob": "cronjobs", "PersistentVolume": "persistentvolumes",
		"PersistentVolumeClaim": "persistentvolumeclaims", "LimitRange": "limitranges", "ResourceQuota": "resourcequotas",
		"ReplicationController": "replicationcontrollers", "ServiceAccount": "serviceaccounts",
	}[o.GetKind()]
	gv, err := schema.ParseGroupVersion(o.GetAPIVersion())
	if err != nil || plural == "" {
		return schema.GroupVersionResource{}, fmt.Errorf("the tests know no kind %s %q", o.GetAPIVersion(), o.GetKind())
	}
	return gv.WithResource(plural), nil
}

// complete fills in what every pod of the tests has.
func (s *space) complete(o any) {
	switch v := o.(type) {
	case map[string]any:
		if _, pod := v["containers"].([]any); pod {
			preset(v, "runtimeClassName", s.h.name)
			preset(v, "terminationGracePeriodSeconds", int64(2))
			preset(v, "automountServiceAccountToken", false)
			preset(v, "enableServiceLinks", false)
			for _, list := range []string{"containers", "initContainers"} {
				containers, _ := v[list].([]any)
				for _, c := range containers {
					if m, ok := c.(map[string]any); ok {
						preset(m, "image", node.AppImage)
					}
				}
			}
		}
		for _, inner := range v {
			s.complete(inner)
		}
	case []any:
		for _, inner := range v {
			s.complete(inner)
		}
	}
}

func preset(m map[string]any, key string, value any) {
	if old, ok := m[key]; !ok || old == nil {
		m[key] = value
	} else if old == "" {
		delete(m, key)
	}
}

// fixture is pods that rows share.
type fixture struct {
	*space
	once sync.Once
	err  error
}

// shared returns the namespace with the pods of a fixture, which are ready.
func (c *cluster) shared(t *testing.T, name string) *space {
	t.Helper()
	text, ok := fixtures()[name]
	if !ok {
		t.Fatalf("there is no fixture %q", name)
	}
	h := c.h
	h.mu.Lock()
	f := h.fixtures[name]
	if f == nil {
		f = &fixture{space: &space{h: h, n: h.n, ns: "shared-" + name + "-" + strings.TrimPrefix(h.name, "coffer-")}}
		h.fixtures[name] = f
	}
	h.mu.Unlock()
	f.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), h.patience())
		defer cancel()
		f.err = f.start(ctx, text)
		if f.err != nil {
			f.err = fmt.Errorf("the shared pods %s: %w\n%s", name, f.err, f.describe())
		}
	})
	if f.err != nil {
		t.Fatal(f.err)
	}
	return f.space
}

func (f *fixture) start(ctx context.Context, text string) error {
	if err := f.makeNamespace(ctx); err != nil {
		return err
	}
	if err := f.create(ctx, text); err != nil {
		return err
	}
	objects, err := decode(text)
	if err != nil {
		return err
	}
	for _, o := range objects {
		if o.GetKind() == "Pod" {
			if _, err := f.watchPod(ctx, o.GetName(), "ready", ready); err != nil {
				return err
			}
		}
	}
	return nil
}

func (h *handler) removeFixtures(t *testing.T) {
	t.Helper()
	h.mu.Lock()
	all := h.fixtures
	h.fixtures = map[string]*fixture{}
	h.mu.Unlock()
	for _, f := range all {
		if err := f.removeNamespace(); err != nil {
			t.Error(err)
		}
	}
}

// describe is what a person would look at first: pods, their containers, events,
// and the ends of the node's logs.
func (s *space) describe() string {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var b bytes.Buffer
	pods, err := s.n.Client().CoreV1().Pods(s.ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err.Error()
	}
	for _, p := range pods.Items {
		fmt.Fprintf(&b, "pod %s: %s\n", p.Name, status(&p))
		for _, c := range p.Spec.Containers {
			lines := int64(5)
			if out, err := s.n.Client().CoreV1().Pods(s.ns).GetLogs(p.Name, &corev1.PodLogOptions{Container: c.Name, TailLines: &lines}).DoRaw(ctx); err == nil && len(out) > 0 {
				fmt.Fprintf(&b, "  %s printed: %q\n", c.Name, out)
			}
		}
	}
	events, err := s.n.Client().CoreV1().Events(s.ns).List(ctx, metav1.ListOptions{})
	if err == nil {
		for _, e := range events.Items {
			fmt.Fprintf(&b, "event %s %s: %s\n", e.InvolvedObject.Name, e.Reason, e.Message)
		}
	}
	b.WriteString(s.n.LogTail("containerd", 8))
	return b.String()
}

// status is a pod's in one line.
func status(p *corev1.Pod) string {
	var b strings.Builder
	b.WriteString(string(p.Status.Phase) + " " + p.Status.Reason)
	all := append(append([]corev1.ContainerStatus(nil), p.Status.InitContainerStatuses...), p.Status.ContainerStatuses...)
	for _, c := range append(all, p.Status.EphemeralContainerStatuses...) {
		fmt.Fprintf(&b, "; %s (%d restarts)", c.Name, c.RestartCount)
		switch {
		case c.State.Waiting != nil:
			fmt.Fprintf(&b, " waits: %s %s", c.State.Waiting.Reason, c.State.Waiting.Message)
		case c.State.Running != nil:
			fmt.Fprintf(&b, " runs, ready %t", c.Ready)
		case c.State.Terminated != nil:
			fmt.Fprintf(&b, " ended: %s %d %s", c.State.Terminated.Reason, c.State.Terminated.ExitCode, c.State.Terminated.Message)
		}
	}
	return b.String()
}
