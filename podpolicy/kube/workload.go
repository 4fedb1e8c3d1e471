package kube

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coffer-project/coffer/podpolicy"
)

// Workload is an object of the input that makes pods.
type Workload struct {
	// Kind, Namespace (empty where the manifest has none) and Name; Name is the
	// prefix of a pod with generateName.
	Kind, Namespace, Name string

	tree     *tree
	template *corev1.PodTemplateSpec
	// templatePath is the path of the template in the object, empty for a Pod.
	templatePath string
	// claims are a StatefulSet's templates of volume claims.
	claims []corev1.PersistentVolumeClaim
	// generated: the pod's name has a suffix that the API server makes up.
	generated bool
	// indexed: a Job that numbers its pods.
	indexed bool
}

// String is KIND/NAME.
func (w *Workload) String() string { return w.Kind + "/" + w.Name }

// File and Line are where the workload begins.
func (w *Workload) File() (name string, line int) { return w.tree.file, w.tree.root.Line }

func (l *loader) workload(d *decoder, kind string, meta metav1.ObjectMeta, templatePath string, template *corev1.PodTemplateSpec) *Workload {
	w := &Workload{Kind: kind, Namespace: meta.Namespace, Name: meta.Name, tree: d.tree, template: template, templatePath: templatePath, generated: kind != "Pod"}
	if meta.Name == "" {
		w.Name, w.generated = meta.GenerateName, true
	}
	switch {
	case w.Name == "":
		l.problems.add(d.tree.at("metadata.name", "give it a name", "a workload without a name"))
	case template == nil:
		l.problems.add(d.tree.at("spec", "add spec.template", "no pod template"))
		w.template = &corev1.PodTemplateSpec{}
	}
	l.in.workloads = append(l.in.workloads, w)
	return w
}

// path is that of a field of the pod's spec in the object.
func (w *Workload) path(field string) string {
	if w.templatePath == "" {
		return "spec." + field
	}
	return w.templatePath + ".spec." + field
}

// metaPath is that of a field of the pod's metadata in the object.
func (w *Workload) metaPath(field string) string {
	p := "metadata"
	if w.templatePath != "" {
		p = w.templatePath + ".metadata"
	}
	if field != "" {
		p += field
	}
	return p
}

// maxGenerated is how much of a prefix Kubernetes keeps before the random part
// of a generated name (apiserver, names.SimpleNameGenerator).
const maxGenerated = 58

// podName is the name of the workload's pods: pinned, or what controllers make
// of it.
func (w *Workload) podName() podpolicy.Name {
	prefix := w.Name
	switch {
	case !w.generated:
		return podpolicy.Name{Value: w.Name}
	case w.Kind != "Pod":
		prefix += "-"
	}
	if w.Kind != "StatefulSet" && len(prefix) > maxGenerated {
		prefix = prefix[:maxGenerated]
	}
	return podpolicy.Name{Match: prefix + "*"}
}

// hostname is what Kubernetes calls the pod inside: its name, cut to the length
// of a label. A controller of indexed or numbered pods gives one of its own,
// which has the same form.
func (w *Workload) hostname() podpolicy.Name {
	n := w.podName()
	if n.Match != "" {
		return n
	}
	if len(n.Value) > maxHostname {
		n.Value = strings.TrimRight(n.Value[:maxHostname], "-.")
	}
	return n
}

// maxHostname is what the kubelet cuts a pod's name to.
const maxHostname = 63

// Annotation is an annotation of the workload's pods, empty without it.
func (w *Workload) Annotation(name string) string { return w.template.Annotations[name] }
