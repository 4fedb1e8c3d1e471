package deploy_test

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestExamples: the examples are what the API takes, and name classes that there
// are.
func TestExamples(t *testing.T) {
	t.Parallel()
	classes := manifests(t)
	files, err := filepath.Glob("../examples/kubernetes/*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		pods := 0
		for key, o := range decode(t, text) {
			for _, spec := range podSpecs(reflect.ValueOf(o)) {
				pods++
				if spec.RuntimeClassName == nil || classes["RuntimeClass/"+*spec.RuntimeClassName] == nil {
					t.Errorf("%s: %s: no such runtime class: %v", f, key, spec.RuntimeClassName)
				}
				if spec.HostNetwork || spec.HostPID || spec.HostIPC {
					t.Errorf("%s: %s: what such a pod cannot have", f, key)
				}
			}
		}
		if pods == 0 {
			t.Errorf("%s: no pods", f)
		}
	}
}

// podSpecs finds the pods in an object.
func podSpecs(v reflect.Value) []corev1.PodSpec {
	if spec, ok := v.Interface().(corev1.PodSpec); ok {
		return []corev1.PodSpec{spec}
	}
	var out []corev1.PodSpec
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			return podSpecs(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				out = append(out, podSpecs(v.Field(i))...)
			}
		}
	}
	return out
}

// TestDocumentedErrors: what the documentation says of errors is what the code
// says: each quoted text stands in some source file.
func TestDocumentedErrors(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(doc), "## Troubleshooting")
	if !ok {
		t.Fatal("no section on troubleshooting")
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	source := sources(t)
	quoted := regexp.MustCompile("`([^`]+)`")
	// These are Kubernetes' and containerd's own.
	foreign := regexp.MustCompile(`no runtime for|nodes are available|context deadline exceeded`)
	checked := 0
	for _, line := range strings.Split(rest, "\n") {
		cells := strings.Split(line, "|")
		if len(cells) < 3 || !strings.Contains(cells[1], "`") {
			continue
		}
		for _, q := range quoted.FindAllStringSubmatch(cells[1], -1) {
			if foreign.MatchString(q[1]) || strings.HasPrefix(q[1], "coffer ") {
				continue
			}
			checked++
			for part := range strings.SplitSeq(q[1], "…") {
				if part = strings.TrimSpace(part); len(part) > 6 && !strings.Contains(source, part) {
					t.Errorf("nothing says %q (of %q)", part, q[1])
				}
			}
		}
	}
	if checked < 15 {
		t.Errorf("only %d errors were looked for", checked)
	}
}

// sources is the text of the packages that say them, with the verbs of their
// formats left out.
func sources(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, dir := range []string{"../internal/host", "../internal/install", "../internal/cli", "../internal/guest", "../podpolicy", "../initdata"} {
		err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
				return err
			}
			text, err := os.ReadFile(p)
			all.Write(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	text := strings.ReplaceAll(all.String(), "\\\"", "\"")
	return regexp.MustCompile(`%[a-z.0-9]+`).ReplaceAllString(text, "…")
}
