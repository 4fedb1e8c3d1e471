package kube

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/podpolicy"

	corev1 "k8s.io/api/core/v1"
)

// ImageSource finds images.
type ImageSource interface {
	// Image pins what a reference, as a manifest has it, stands for now. It is
	// asked once for each reference of a call to Generate.
	Image(ctx context.Context, reference string) (*Image, error)
}

// Image is what a policy needs to know of an image.
type Image struct {
	// Digest of the index or platform manifest: sha256:<64 hex digits>.
	Digest string
	// From lists the repositories it may come from, as in podpolicy.Image.
	From []string
	// Config is its configuration; Digest, Passwd and Group are not used.
	Config podpolicy.ImageConfig
	// Accounts returns the contents of its /etc/passwd and /etc/group, nil for
	// a file that it does not have. It is called where a policy needs them.
	Accounts func(context.Context) (passwd, group []byte, err error)
	// LayerKeys are the KBS URIs of the keys of encrypted layers.
	LayerKeys []string
}

// Options of Generate.
type Options struct {
	Images ImageSource
	// Namespace is that of manifests without one; empty leaves it to the host.
	Namespace string
	// Allow adds to what annotations permit, by container name; "*" is every
	// container.
	Allow map[string]podpolicy.Allow
	// SecretEnv adds variables from the trustee: container name to variable to
	// KBS URI.
	SecretEnv map[string]map[string]string
	// Services names Services beside those of the input whose variables the
	// host may add.
	Services []string
	// Ephemeral takes ephemeral containers.
	Ephemeral bool
	// RuntimeClasses, when there are any, passes over workloads whose
	// runtimeClassName is another.
	RuntimeClasses []string
}

// Generated is a workload with its policy.
type Generated struct {
	Workload *Workload
	Policy   *podpolicy.Policy
	// Images by the references of the manifest.
	Images map[string]*Image
	// VCPUs and MemoryMiB are the size of machine that the workload's annotations
	// ask for; 0 where its class says. Both may be part of the measurement.
	VCPUs, MemoryMiB int
}

// Result is what Generate has made.
type Result struct {
	// Workloads in the order of the input.
	Workloads []Generated
	// Notes are warnings, and what was passed over, by place.
	Notes []Problem
}

// Generate writes the policy of every workload of the input. All problems of
// all workloads are reported, as an [*InputError].
func Generate(ctx context.Context, in *Input, o Options) (*Result, error) {
	if len(in.workloads) == 0 {
		return nil, errors.New("the input has no workload: expected a Pod, Deployment, StatefulSet, DaemonSet, ReplicaSet, ReplicationController, Job or CronJob")
	}
	bad := problems{files: in.names}
	notes := problems{files: in.names, list: slices.Clone(in.notes.list)}
	images := &imageCache{source: o.Images, found: map[string]foundImage{}}
	result := &Result{}
	for _, w := range in.workloads {
		class := w.template.Spec.RuntimeClassName
		if len(o.RuntimeClasses) > 0 && (class == nil || !slices.Contains(o.RuntimeClasses, *class)) {
			notes.add(w.tree.at(w.path("runtimeClassName"), "", "passed over: it has another runtime class"))
			continue
		}
		g := &generator{
			ctx: ctx, in: in, o: o, w: w, spec: &w.template.Spec, problems: &bad, notes: &notes, images: images,
			used: map[string]*Image{}, volumes: map[string]*volume{},
		}
		before := len(bad.list)
		g.generate()
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if len(bad.list) == before {
			result.Workloads = append(result.Workloads, Generated{
				Workload: w, Policy: g.policy, Images: g.used, VCPUs: g.marks.vcpus, MemoryMiB: g.marks.memory,
			})
		}
	}
	if err := bad.err(); err != nil {
		return nil, err
	}
	result.Notes = notes.sorted()
	return result, nil
}

// imageCache asks for each image once.
type imageCache struct {
	source ImageSource
	found  map[string]foundImage
}

type foundImage struct {
	image *Image
	err   error
}

func (c *imageCache) image(ctx context.Context, reference string) (*Image, error) {
	f, ok := c.found[reference]
	if !ok {
		f.image, f.err = c.source.Image(ctx, reference)
		c.found[reference] = f
	}
	return f.image, f.err
}

// generator writes one policy.
type generator struct {
	ctx      context.Context
	in       *Input
	o        Options
	w        *Workload
	spec     *corev1.PodSpec
	problems *problems
	notes    *problems
	images   *imageCache
	used     map[string]*Image
	marks    *annotations
	policy   *podpolicy.Policy
	volumes  map[string]*volume
	services []string
	// places are the fields of the PodSpec that the policy's containers are of.
	places []string
}

// bad reports a problem with a field of the PodSpec.
func (g *generator) bad(field, remedy, format string, args ...any) {
	g.problems.add(g.w.tree.at(g.w.path(field), remedy, format, args...))
}

// badMeta reports a problem with an annotation of the pod.
func (g *generator) badMeta(annotation, remedy, format string, args ...any) {
	g.problems.add(g.w.tree.at(member(g.w.metaPath(".annotations"), annotation), remedy, format, args...))
}

func (g *generator) note(field, remedy, format string, args ...any) {
	g.notes.add(g.w.tree.at(g.w.path(field), remedy, format, args...))
}

// namespace is the workload's, or empty where it is not known.
func (g *generator) namespace() string {
	if g.w.Namespace != "" {
		return g.w.Namespace
	}
	return g.o.Namespace
}

func (g *generator) generate() {
	before := len(g.problems.list)
	g.policy = &podpolicy.Policy{APIVersion: podpolicy.APIVersion, Kind: podpolicy.Kind}
	g.refuse()
	g.marks = g.annotations()
	g.pod()
	g.network()
	g.findServices()
	g.findVolumes()
	g.containers()
	g.policyVolumes()
	g.checkAnnotations()
	if len(g.problems.list) == before {
		g.validate()
	}
}

func (g *generator) pod() {
	p := &g.policy.Pod
	p.Name = g.w.podName()
	p.Namespace = podpolicy.Name{Value: g.namespace()}
	if p.Namespace.Value == "" {
		p.Namespace = podpolicy.Name{Host: podpolicy.SlotPodNamespace}
		g.notes.add(g.w.tree.at("metadata.name", "write metadata.namespace, or give --namespace", "the namespace is left to the host"))
	}
	p.Hostname = g.hostname()
	p.SharePID = g.spec.ShareProcessNamespace != nil && *g.spec.ShareProcessNamespace
	if sc := g.spec.SecurityContext; sc != nil && len(sc.Sysctls) > 0 {
		p.Sysctls = map[string]string{}
		for _, s := range sc.Sysctls {
			// Kubernetes takes both forms of a name.
			p.Sysctls[strings.ReplaceAll(s.Name, "/", ".")] = s.Value
		}
	}
}

// hostname follows the kubelet (GeneratePodHostNameAndDomain).
func (g *generator) hostname() podpolicy.Name {
	if o := g.spec.HostnameOverride; o != nil && *o != "" {
		return podpolicy.Name{Value: *o}
	}
	n := g.w.hostname()
	if g.spec.Hostname != "" {
		n = podpolicy.Name{Value: g.spec.Hostname}
	}
	if fqdn := g.spec.SetHostnameAsFQDN; fqdn != nil && *fqdn && g.spec.Subdomain != "" {
		namespace := g.namespace()
		if namespace == "" {
			namespace = "*"
		}
		return podpolicy.Name{Match: n.Value + n.Match + "." + g.spec.Subdomain + "." + namespace + ".svc.*"}
	}
	return n
}

func (g *generator) network() {
	n := &g.policy.Network
	config := g.spec.DNSConfig
	if g.spec.DNSPolicy == corev1.DNSNone {
		if config == nil || len(config.Nameservers) == 0 {
			g.bad("dnsPolicy", "write dnsConfig.nameservers", "dnsPolicy None without name servers")
			return
		}
		n.DNS.Servers, n.DNS.Searches = slices.Clone(config.Nameservers), slices.Clone(config.Searches)
		for _, o := range config.Options {
			option := o.Name
			if o.Value != nil {
				option += ":" + *o.Value
			}
			n.DNS.Options = append(n.DNS.Options, option)
		}
	} else {
		n.DNS.Host = podpolicy.SlotDNS
		if config != nil {
			g.note("dnsConfig", "use dnsPolicy: None to pin it", "what it adds is left to the host, as the cluster's DNS is")
		}
	}
	for _, a := range g.spec.HostAliases {
		n.Hosts.Entries = append(n.Hosts.Entries, podpolicy.HostEntry{Address: a.IP, Names: slices.Clone(a.Hostnames)})
	}
}

// findServices lists the Services whose variables Kubernetes gives to the pod:
// always those of "kubernetes", and with service links those of its namespace.
func (g *generator) findServices() {
	g.services = []string{"kubernetes"}
	if links := g.spec.EnableServiceLinks; links == nil || *links {
		for _, s := range g.in.objects.services {
			here := s.namespace == g.namespace() || s.namespace == "" || g.namespace() == ""
			external := s.object.Spec.Type == corev1.ServiceTypeExternalName
			if here && !external && s.object.Spec.ClusterIP != corev1.ClusterIPNone {
				g.services = append(g.services, s.name)
			}
		}
		g.note("enableServiceLinks", "set enableServiceLinks: false", "Services of the namespace that are not in the input give the pod variables, with which the guest refuses it")
	}
	g.services = append(g.services, g.o.Services...)
	slices.Sort(g.services)
	g.services = slices.Compact(g.services)
}

// Resources lists the KBS URIs that the guest fetches for the workload: those in
// its policy, and the keys of its images' layers; sorted, each once. What sealed
// secrets need is not among them.
func (g *Generated) Resources() []string {
	var uris []string
	for _, c := range g.Policy.Containers {
		for _, v := range c.Env {
			uris = append(uris, v.Resource)
		}
	}
	for _, v := range g.Policy.Volumes {
		uris = append(uris, v.Key)
		uris = slices.AppendSeq(uris, maps.Values(v.Resources))
	}
	for _, i := range g.Images {
		uris = append(uris, i.LayerKeys...)
	}
	slices.Sort(uris)
	return slices.DeleteFunc(slices.Compact(uris), func(s string) bool { return s == "" })
}
