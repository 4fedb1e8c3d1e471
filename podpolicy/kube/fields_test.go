package kube_test

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/coffer-project/coffer/podpolicy/kube"
)

// leaves are the paths of all fields of a type of the Kubernetes API, as Fields
// has them.
func leaves(path string, t reflect.Type) []string {
	switch t {
	case reflect.TypeFor[resource.Quantity](), reflect.TypeFor[intstr.IntOrString](), reflect.TypeFor[metav1.Time]():
		return []string{path}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return leaves(path, t.Elem())
	case reflect.Slice:
		return leaves(path+"[]", t.Elem())
	case reflect.Map:
		return leaves(path+"{}", t.Elem())
	case reflect.Struct:
	default:
		return []string{path}
	}
	var all []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		p := path
		if name != "" {
			p = strings.TrimPrefix(path+"."+name, ".")
		}
		all = append(all, leaves(p, f.Type)...)
	}
	return all
}

// same names what is decided together.
func same(path string) string {
	for _, s := range [][2]string{
		{"initContainers[]", "containers[]"}, {"ephemeralContainers[]", "containers[]"},
		{"containers[].readinessProbe", "containers[].livenessProbe"}, {"containers[].startupProbe", "containers[].livenessProbe"},
		{"containers[].lifecycle.preStop", "containers[].lifecycle.postStart"},
	} {
		if rest, ok := strings.CutPrefix(path, s[0]); ok && (rest == "" || rest[0] == '.') {
			path = s[1] + rest
		}
	}
	return path
}

// TestEveryFieldIsDecided walks the whole of PodSpec down to its leaves: a field
// that Kubernetes adds fails here until somebody has decided about it. What is
// pinned, a slot or derived is so by itself; only what is refused or ignored may
// be so as a whole.
func TestEveryFieldIsDecided(t *testing.T) {
	t.Parallel()
	decided := map[string]kube.Field{}
	for _, f := range kube.Fields() {
		if _, twice := decided[f.Path]; twice {
			t.Errorf("%s is decided twice", f.Path)
		}
		decided[f.Path] = f
	}
	used := map[string]bool{}
	all := leaves("", reflect.TypeFor[corev1.PodSpec]())
	if len(all) < 700 {
		t.Fatalf("the walk found %d fields only", len(all))
	}
	for _, leaf := range all {
		leaf = same(leaf)
		if _, ok := decided[leaf]; ok {
			used[leaf] = true
			continue
		}
		found := false
		for path, f := range decided {
			whole := f.Decision == kube.Refused || f.Decision == kube.Ignored
			if whole && (strings.HasPrefix(leaf, path+".") || strings.HasPrefix(leaf, path+"[") || strings.HasPrefix(leaf, path+"{")) {
				found, used[path] = true, true
			}
		}
		if !found {
			t.Errorf("nobody has decided about %s: add it to Fields", leaf)
		}
	}
	for path := range decided {
		if !used[path] {
			t.Errorf("%s is decided, and is no field of a PodSpec", path)
		}
	}
}

func TestFieldsExplainThemselves(t *testing.T) {
	t.Parallel()
	for _, f := range kube.Fields() {
		if f.How == "" || !slices.Contains([]kube.Decision{kube.Pinned, kube.Slot, kube.Derived, kube.Refused, kube.Ignored}, f.Decision) {
			t.Errorf("%s: %q, %q", f.Path, f.Decision, f.How)
		}
		if (f.Decision == kube.Refused || len(f.Only) > 0) && f.Remedy == "" {
			t.Errorf("%s: a value that is refused needs a remedy", f.Path)
		}
	}
}

// TestTableIsDocumented holds docs/prepare.md to the list; COFFER_UPDATE=1
// writes the table there.
func TestTableIsDocumented(t *testing.T) {
	t.Parallel()
	const file, begin, end = "../../docs/prepare.md", "<!-- fields: generated -->\n", "<!-- end of fields -->\n"
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(data), begin)
	table, tail, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s has no %q", file, begin)
	}
	if table == kube.Table() {
		return
	}
	if os.Getenv("COFFER_UPDATE") != "1" {
		t.Fatalf("%s has not the table of Fields; COFFER_UPDATE=1 go test writes it", file)
	}
	if err := os.WriteFile(file, []byte(head+begin+kube.Table()+end+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}
