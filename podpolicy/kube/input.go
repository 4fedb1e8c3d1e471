package kube

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// File is one file of the input.
type File struct {
	// Name is what messages call it.
	Name string
	Data []byte
}

// Input is what Load has read.
type Input struct {
	files     []*file
	workloads []*Workload
	objects   objects
	notes     problems
	names     []string
}

// file is a file with its documents.
type file struct {
	File
	documents []*yaml.Node
	// compact: sequences are written with their dashes below the key.
	compact bool
}

// objects are what workloads may refer to.
type objects struct {
	configMaps []named[corev1.ConfigMap]
	secrets    []named[corev1.Secret]
	claims     []named[corev1.PersistentVolumeClaim]
	services   []named[corev1.Service]
	accounts   []named[corev1.ServiceAccount]
}

// named is an object with its place.
type named[T any] struct {
	namespace, name string
	object          *T
	tree            *tree
}

// Load reads manifests: YAML or JSON, several documents in a file, List objects.
// Workloads, and what they may refer to, are decoded strictly; other kinds are
// passed over with a note. All problems are reported, as an [*InputError].
func Load(files []File) (*Input, error) {
	in := &Input{}
	l := &loader{in: in}
	total := 0
	for _, f := range files {
		l.problems.files = append(l.problems.files, f.Name)
		total += len(f.Data)
		if len(f.Data) > MaxFileBytes || total > MaxBytes {
			return nil, fmt.Errorf("%s: larger than %d bytes, or %d with the other files", f.Name, MaxFileBytes, MaxBytes)
		}
	}
	in.names, in.notes.files = l.problems.files, l.problems.files
	for _, f := range files {
		l.file(f)
	}
	l.duplicates()
	if err := l.problems.err(); err != nil {
		return nil, err
	}
	return in, nil
}

// Workloads are those of the input, in its order.
func (in *Input) Workloads() []*Workload { return slices.Clone(in.workloads) }

// Notes are what was passed over, by place.
func (in *Input) Notes() []Problem { return slices.Clone(in.notes.sorted()) }

type loader struct {
	in       *Input
	problems problems
	nodes    int
	// seen are the objects by kind, namespace and name.
	seen map[string]Problem
}

func (l *loader) file(f File) {
	loaded := &file{File: f, compact: compactSequences(f.Data)}
	l.in.files = append(l.in.files, loaded)
	l.nodes = maxNodes
	decoder := yaml.NewDecoder(bytes.NewReader(f.Data))
	for {
		var doc yaml.Node
		err := decoder.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			l.problems.add(Problem{File: f.Name, Line: errorLine(err), Column: 1, Problem: clip(err.Error())})
			return
		}
		if len(loaded.documents) == maxDocuments {
			l.problems.add(Problem{File: f.Name, Line: doc.Line, Column: 1, Problem: fmt.Sprintf("more than %d documents", maxDocuments)})
			return
		}
		loaded.documents = append(loaded.documents, &doc)
		if doc.Kind == yaml.DocumentNode && len(doc.Content) == 1 {
			l.object(f.Name, doc.Content[0], 0)
		}
	}
}

// errorLine finds "line N" in an error of the YAML parser.
func errorLine(err error) int {
	line := 1
	if _, rest, ok := strings.Cut(err.Error(), "line "); ok {
		if _, err := fmt.Sscanf(rest, "%d", &line); err != nil {
			line = 1
		}
	}
	return line
}

// object reads one object, or the items of a list.
func (l *loader) object(file string, root *yaml.Node, depth int) {
	if root.Kind == yaml.AliasNode {
		root = root.Alias
	}
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return
	}
	here := Problem{File: file, Line: root.Line, Column: root.Column}
	if root.Kind != yaml.MappingNode || depth > 4 {
		here.Problem = "expected a Kubernetes object: a mapping with apiVersion and kind"
		l.problems.add(here)
		return
	}
	apiVersion, kind := scalar(root, "apiVersion"), scalar(root, "kind")
	if apiVersion == "" || kind == "" {
		here.Problem, here.Remedy = "this object has no apiVersion or no kind", "is it a Kubernetes manifest?"
		l.problems.add(here)
		return
	}
	if apiVersion == "v1" && kind == "List" {
		if items := child(root, "items"); items != nil && items.Kind == yaml.SequenceNode {
			for _, item := range items.Content {
				l.object(file, item, depth+1)
			}
		}
		return
	}
	t := &tree{file: file, root: root, label: clip(kind), places: map[string]*yaml.Node{}, values: map[string]*yaml.Node{}}
	if metadata := child(root, "metadata"); metadata != nil {
		if name := scalar(metadata, "name") + scalar(metadata, "generateName"); name != "" {
			t.label += "/" + clip(name)
		}
	}
	d := &decoder{tree: t, problems: &l.problems, nodes: &l.nodes}
	if !l.known(d, apiVersion, kind) {
		here.Object, here.Problem = t.label, "passed over: no workload, and nothing that one refers to"
		l.in.notes.add(here)
	}
}

// known decodes an object of a kind that matters.
func (l *loader) known(d *decoder, apiVersion, kind string) bool {
	o := &l.in.objects
	switch apiVersion + " " + kind {
	case "v1 ConfigMap":
		keep(d, &o.configMaps, func(v *corev1.ConfigMap) *metav1.ObjectMeta { return &v.ObjectMeta })
	case "v1 Secret":
		keep(d, &o.secrets, func(v *corev1.Secret) *metav1.ObjectMeta { return &v.ObjectMeta })
	case "v1 PersistentVolumeClaim":
		keep(d, &o.claims, func(v *corev1.PersistentVolumeClaim) *metav1.ObjectMeta { return &v.ObjectMeta })
	case "v1 Service":
		keep(d, &o.services, func(v *corev1.Service) *metav1.ObjectMeta { return &v.ObjectMeta })
	case "v1 ServiceAccount":
		keep(d, &o.accounts, func(v *corev1.ServiceAccount) *metav1.ObjectMeta { return &v.ObjectMeta })
	case "v1 Pod":
		if v := new(corev1.Pod); d.decode(v) {
			l.workload(d, kind, v.ObjectMeta, "", &corev1.PodTemplateSpec{ObjectMeta: v.ObjectMeta, Spec: v.Spec})
		}
	case "v1 ReplicationController":
		if v := new(corev1.ReplicationController); d.decode(v) {
			l.workload(d, kind, v.ObjectMeta, "spec.template", v.Spec.Template)
		}
	case "apps/v1 Deployment":
		if v := new(appsv1.Deployment); d.decode(v) {
			l.workload(d, kind, v.ObjectMeta, "spec.template", &v.Spec.Template)
		}
	case "apps/v1 ReplicaSet":
		if v := new(appsv1.ReplicaSet); d.decode(v) {
			l.workload(d, kind, v.ObjectMeta, "spec.template", &v.Spec.Template)
		}
	case "apps/v1 DaemonSet":
		if v := new(appsv1.DaemonSet); d.decode(v) {
			l.workload(d, kind, v.ObjectMeta, "spec.template", &v.Spec.Template)
		}
	case "apps/v1 StatefulSet":
		if v := new(appsv1.StatefulSet); d.decode(v) {
			w := l.workload(d, kind, v.ObjectMeta, "spec.template", &v.Spec.Template)
			w.claims = v.Spec.VolumeClaimTemplates
		}
	case "batch/v1 Job":
		if v := new(batchv1.Job); d.decode(v) {
			w := l.workload(d, kind, v.ObjectMeta, "spec.template", &v.Spec.Template)
			w.indexed = indexed(&v.Spec)
		}
	case "batch/v1 CronJob":
		if v := new(batchv1.CronJob); d.decode(v) {
			w := l.workload(d, kind, v.ObjectMeta, "spec.jobTemplate.spec.template", &v.Spec.JobTemplate.Spec.Template)
			w.indexed = indexed(&v.Spec.JobTemplate.Spec)
		}
	default:
		return l.oldKind(d, apiVersion, kind)
	}
	return true
}

func indexed(s *batchv1.JobSpec) bool {
	return s.CompletionMode != nil && *s.CompletionMode == batchv1.IndexedCompletion
}

// oldKind refuses workloads of API versions that no Kubernetes serves any more,
// and lists of one kind: passed over, they would run without a policy.
func (l *loader) oldKind(d *decoder, apiVersion, kind string) bool {
	versions := map[string]string{
		"Pod": "v1", "ReplicationController": "v1", "Deployment": "apps/v1", "ReplicaSet": "apps/v1", "DaemonSet": "apps/v1",
		"StatefulSet": "apps/v1", "Job": "batch/v1", "CronJob": "batch/v1", "List": "v1",
	}
	want := versions[kind]
	if one, ok := strings.CutSuffix(kind, "List"); ok && versions[one] == apiVersion {
		l.problems.add(d.tree.at("kind", "write apiVersion: v1 and kind: List", "%s is not taken", kind))
		return true
	}
	group, _, _ := strings.Cut(apiVersion, "/")
	if want == "" || !slices.Contains([]string{"v1", "apps", "batch", "extensions"}, group) && !strings.HasPrefix(group, "v1") {
		return false
	}
	l.problems.add(d.tree.at("apiVersion", "write apiVersion: "+want, "%s is not served as %s", kind, clip(apiVersion)))
	return true
}

// keep decodes an object that workloads may refer to.
func keep[T any](d *decoder, list *[]named[T], meta func(*T) *metav1.ObjectMeta) {
	v := new(T)
	if d.decode(v) {
		m := meta(v)
		*list = append(*list, named[T]{m.Namespace, m.Name, v, d.tree})
	}
}

// find looks an object up. An object or workload without a namespace goes where
// the other is.
func find[T any](list []named[T], namespace, name string) *named[T] {
	var open *named[T]
	for i := range list {
		o := &list[i]
		switch {
		case o.name != name:
		case o.namespace == namespace:
			return o
		case o.namespace == "" || namespace == "":
			open = o
		}
	}
	return open
}

// duplicates reports objects that are there twice: which one a workload would
// have is a matter of order.
func (l *loader) duplicates() {
	l.seen = map[string]Problem{}
	o := &l.in.objects
	for _, v := range o.configMaps {
		l.once("ConfigMap", v.namespace, v.name, v.tree)
	}
	for _, v := range o.secrets {
		l.once("Secret", v.namespace, v.name, v.tree)
	}
	for _, v := range o.claims {
		l.once("PersistentVolumeClaim", v.namespace, v.name, v.tree)
	}
	for _, v := range o.services {
		l.once("Service", v.namespace, v.name, v.tree)
	}
	for _, v := range o.accounts {
		l.once("ServiceAccount", v.namespace, v.name, v.tree)
	}
	for _, w := range l.in.workloads {
		l.once(w.Kind, w.Namespace, w.Name, w.tree)
	}
}

func (l *loader) once(kind, namespace, name string, t *tree) {
	key := kind + "/" + namespace + "/" + name
	p := t.at("metadata.name", "remove one of them", "this object is in the input twice")
	if first, twice := l.seen[key]; twice && name != "" {
		p.Problem += fmt.Sprintf(", see %s:%d", first.File, first.Line)
		l.problems.add(p)
		return
	}
	l.seen[key] = p
}

// child is the value of a mapping's member.
func child(n *yaml.Node, key string) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			v := n.Content[i+1]
			if v.Kind == yaml.AliasNode {
				v = v.Alias
			}
			return v
		}
	}
	return nil
}

func scalar(n *yaml.Node, key string) string {
	if v := child(n, key); v != nil && v.Kind == yaml.ScalarNode {
		return v.Value
	}
	return ""
}

// compactSequences tells how a file writes a sequence in a mapping: with its
// dashes below the key, as Kubernetes' own tools do, or indented.
func compactSequences(data []byte) bool {
	lines := strings.Split(string(data), "\n")
	indent := func(line string, skip string) int { return len(line) - len(strings.TrimLeft(line, skip)) }
	for i := 1; i < len(lines); i++ {
		if strings.HasPrefix(strings.TrimLeft(lines[i], " "), "- ") && strings.HasSuffix(strings.TrimRight(lines[i-1], " \r"), ":") {
			return indent(lines[i], " ") == indent(lines[i-1], " -")
		}
	}
	return true
}
