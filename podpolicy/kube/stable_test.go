package kube_test

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/coffer-project/coffer/podpolicy/kube"
)

func readExample(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile("../../examples/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// shuffle changes the order of members of every mapping.
func shuffle(r *rand.Rand, n *yaml.Node) {
	for _, c := range n.Content {
		shuffle(r, c)
	}
	if n.Kind != yaml.MappingNode {
		return
	}
	r.Shuffle(len(n.Content)/2, func(i, j int) {
		n.Content[2*i], n.Content[2*j] = n.Content[2*j], n.Content[2*i]
		n.Content[2*i+1], n.Content[2*j+1] = n.Content[2*j+1], n.Content[2*i+1]
	})
}

// TestStable: the order of members and documents, the form (YAML, JSON, a List,
// several files) and what a cluster adds to an object change no byte of a policy.
func TestStable(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"web.yaml", "database.yaml", "sidecars.yaml"} {
		text := readExample(t, name)
		want, err := one(t, text, kube.Options{}).Policy.Canonical()
		if err != nil {
			t.Fatal(err)
		}
		same := func(what string, files []kube.File) {
			t.Helper()
			in, err := kube.Load(files)
			if err != nil {
				t.Fatalf("%s: %s: %v", name, what, err)
			}
			result, err := kube.Generate(t.Context(), in, kube.Options{Images: images{}})
			if err != nil {
				t.Fatalf("%s: %s: %v", name, what, err)
			}
			if got, err := result.Workloads[0].Policy.Canonical(); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %s: another policy: %s %v", name, what, got, err)
			}
		}
		var documents []*yaml.Node
		for d := yaml.NewDecoder(strings.NewReader(text)); ; {
			var n yaml.Node
			if d.Decode(&n) != nil {
				break
			}
			documents = append(documents, &n)
		}
		r := rand.New(rand.NewPCG(1, 2))
		for range 10 {
			var files []kube.File
			items := []any{}
			for _, d := range documents {
				shuffle(r, d)
				data, err := yaml.Marshal(d)
				if err != nil {
					t.Fatal(err)
				}
				files = append(files, kube.File{Name: string(rune('a' + len(files))), Data: data})
				var item map[string]any
				if err := d.Decode(&item); err != nil {
					t.Fatal(err)
				}
				if item["kind"] != "ConfigMap" {
					item["status"] = map[string]any{}
				}
				items = append(items, item)
			}
			r.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
			same("shuffled", files)
			list, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "items": items})
			if err != nil {
				t.Fatal(err)
			}
			same("list", []kube.File{{Name: "list.json", Data: list}})
		}
	}
}

// TestRewrite puts what was prepared into the manifests: with comments and
// order, twice the same, and the policy stays what it is.
func TestRewrite(t *testing.T) {
	t.Parallel()
	text := readExample(t, "web.yaml")
	prepare := func(text string) string {
		in, err := kube.Load([]kube.File{{Name: "web.yaml", Data: []byte(text)}})
		if err != nil {
			t.Fatal(err)
		}
		result, err := kube.Generate(t.Context(), in, kube.Options{Images: images{}})
		if err != nil {
			t.Fatal(err)
		}
		g := result.Workloads[0]
		change := kube.Change{Workload: g.Workload, RuntimeClass: "coffer", Annotations: map[string]string{"io.example/x": strings.Repeat("H4sI", 1000)}, Images: map[string]string{}}
		for ref := range g.Images {
			change.Images[ref] = strings.SplitN(ref, "@", 2)[0] + "@sha256:" + strings.Repeat("0", 64)
		}
		files, err := in.Rewrite([]kube.Change{change})
		if err != nil {
			t.Fatal(err)
		}
		return string(files[0].Data)
	}
	first := prepare(text)
	golden(t, "testdata/web.prepared.yaml.golden", []byte(first))
	if second := prepare(first); second != first {
		t.Errorf("prepared again it is another: %s", second)
	}
	// Without what was added it is what it was, but for blank lines and quotes.
	var kept []string
	for line := range strings.Lines(first) {
		if !strings.Contains(line, "runtimeClassName: coffer") && !strings.Contains(line, "io.example/x") {
			kept = append(kept, strings.ReplaceAll(line, "@sha256:"+strings.Repeat("0", 64), ""))
		}
	}
	if !slices.Equal(kept, slices.Collect(strings.Lines(text))) {
		t.Errorf("lines were changed: %s", strings.Join(kept, ""))
	}
}

// TestRewriteForms: JSON stays JSON; what is absent is made; what is shared is
// not changed behind the other's back.
func TestRewriteForms(t *testing.T) {
	t.Parallel()
	rewrite := func(text string) (string, error) {
		in, err := kube.Load([]kube.File{{Name: "x", Data: []byte(text)}})
		if err != nil {
			t.Fatal(err)
		}
		var changes []kube.Change
		for _, w := range in.Workloads() {
			changes = append(changes, kube.Change{Workload: w, Annotations: map[string]string{"a": "v"}, Images: map[string]string{"i": "j"}, RuntimeClass: "r"})
		}
		files, err := in.Rewrite(changes)
		if err != nil {
			return "", err
		}
		return string(files[0].Data), nil
	}
	got, err := rewrite(`{"kind":"Pod","apiVersion":"v1","metadata":{"name":"x<&"},"spec":{"containers":[{"name":"a","image":"i","stdin":true,"args":[]}],"priority":3}}`)
	want := "{\n  \"kind\": \"Pod\",\n  \"apiVersion\": \"v1\",\n  \"metadata\": {\n    \"name\": \"x\\u003c\\u0026\",\n    \"annotations\": {\n      \"a\": \"v\"\n    }\n  },\n  \"spec\": {\n    \"containers\": [\n      {\n        \"name\": \"a\",\n        \"image\": \"j\",\n        \"stdin\": true,\n        \"args\": []\n      }\n    ],\n    \"priority\": 3,\n    \"runtimeClassName\": \"r\"\n  }\n}\n"
	if err != nil || got != want {
		t.Errorf("JSON: %v\n%s", err, got)
	}
	got, err = rewrite("# c\napiVersion: batch/v1\nkind: CronJob\nmetadata: {name: x}\nspec:\n  jobTemplate:\n    spec:\n      template:\n        spec:\n          containers:\n            - name: a # d\n              image: i\n")
	want = "# c\napiVersion: batch/v1\nkind: CronJob\nmetadata: {name: x}\nspec:\n  jobTemplate:\n    spec:\n      template:\n        metadata:\n          annotations:\n            a: v\n        spec:\n          containers:\n            - name: a # d\n              image: j\n          runtimeClassName: r\n"
	if err != nil || got != want {
		t.Errorf("YAML: %v\n%s", err, got)
	}
	_, err = rewrite("apiVersion: v1\nkind: Pod\nmetadata: &m {name: x}\nspec: {containers: [{name: a, image: i}]}\n")
	if err == nil || !strings.Contains(err.Error(), "line 3: metadata has an anchor") {
		t.Errorf("a shared mapping: %v", err)
	}
}

// FuzzGenerate: no input makes the generator fail otherwise than by an error;
// what it writes is valid, fits its own workload, and is written the same again.
func FuzzGenerate(f *testing.F) {
	for _, name := range []string{"web.yaml", "database.yaml", "job.yaml", "sidecars.yaml"} {
		f.Add([]byte(readExample(f, name)))
	}
	f.Add([]byte(`{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"x-"},"spec":{"containers":[{"name":"a","image":"a"}]}}]}`))
	f.Add([]byte("apiVersion: v1\nkind: Pod\nmetadata: &a {name: x, labels: *a}\nspec: {containers: [&c {name: a, image: a, args: ['$($$(']}, *c]}\n"))
	f.Add([]byte("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {securityContext: {runAsUser: -1, supplementalGroups: [4294967295]}, containers: [{name: a, image: a, resources: {limits: {cpu: 1e30, memory: -1}}}]}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		in, err := kube.Load([]kube.File{{Name: "in", Data: data}})
		if err != nil {
			return
		}
		result, err := kube.Generate(t.Context(), in, kube.Options{Images: images{}})
		if err != nil {
			return
		}
		var changes []kube.Change
		for _, g := range result.Workloads {
			if err := g.Policy.Validate(); err != nil {
				t.Errorf("%s: %v", g.Workload, err)
			}
			if findings, err := kube.Check(t.Context(), &g, g.Policy); err != nil || len(findings) > 0 {
				t.Errorf("%s does not fit its own policy: %v %v", g.Workload, findings, err)
			}
			changes = append(changes, kube.Change{Workload: g.Workload, Annotations: map[string]string{"x": "y"}})
		}
		files, err := in.Rewrite(changes)
		if err != nil {
			return
		}
		again, err := kube.Load(files)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, files[0].Data)
		}
		second, err := kube.Generate(t.Context(), again, kube.Options{Images: images{}})
		if err != nil || len(second.Workloads) != len(result.Workloads) {
			t.Fatalf("what was written makes no policies: %v\n%s", err, files[0].Data)
		}
		for i, g := range result.Workloads {
			a, _ := g.Policy.Canonical()
			if b, _ := second.Workloads[i].Policy.Canonical(); !bytes.Equal(a, b) {
				t.Errorf("what was written makes another policy: %s\n%s", a, b)
			}
		}
	})
}
