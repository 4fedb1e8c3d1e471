package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/oci/registries"
	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/podpolicy/kube"
)

// workloadFlags are the flags of commands that read Kubernetes manifests.
type workloadFlags struct {
	o          kube.Options
	workload   string
	allow      []string
	allowLogs  bool
	secretEnv  []string
	images     []string
	registry   run.ImageOptions
	registryCA []string
	registries string
}

func (w *workloadFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&w.workload, "workload", "", "KIND/NAME of one workload; the others are left out")
	f.StringArrayVar(&w.o.RuntimeClasses, "only-runtime-class", nil, "runtimeClassName of the workloads that are meant; others are left out (repeatable)")
	f.StringVarP(&w.o.Namespace, "namespace", "n", "", "namespace of manifests without one (default: left to the host)")
	f.StringArrayVar(&w.allow, "allow", nil, `CONTAINER=JSON: what the host may do with a container ("*": with each), as the annotation `+kube.AnnotationAllow+"CONTAINER (repeatable)")
	f.BoolVar(&w.allowLogs, "allow-logs", false, "let the host read the output of every container")
	f.StringArrayVar(&w.secretEnv, "secret-env", nil, "CONTAINER/NAME=kbs:///REPOSITORY/TYPE/TAG: a variable from the trustee (repeatable)")
	f.StringArrayVar(&w.o.Services, "service", nil, "name of a Service that is not in the files, and whose variables the host may add (repeatable)")
	f.BoolVar(&w.o.Ephemeral, "ephemeral", false, "take ephemeral containers")
	f.StringArrayVar(&w.images, "image", nil, "REFERENCE=oci:DIR[:TAG] or REFERENCE=docker-archive:FILE: where an image lies that the registry does not have yet (repeatable)")
	f.StringVar(&w.registry.AuthFile, "authfile", "", "docker auth.json with which this program asks registries")
	f.StringArrayVar(&w.registryCA, "registry-ca", nil, "[HOST[:PORT]=]FILE: PEM certificates to trust for registries; with HOST for that one, which then trusts no other (repeatable)")
	f.StringVar(&w.registries, "registries-conf", "", "containers-registries.conf file: mirrors, insecure and blocked registries")
	f.StringArrayVar(&w.registry.PlainHTTP, "plain-http", nil, "registry host[:port] to use without TLS (repeatable)")
}

// options turns flags into options.
func (w *workloadFlags) options(a *app) (local map[string]string, err error) {
	w.o.Allow = map[string]podpolicy.Allow{}
	for _, kv := range w.allow {
		name, text, ok := strings.Cut(kv, "=")
		if !ok || name == "" {
			return nil, usagef(`--allow: expected CONTAINER=JSON, for example web={"logs":true}, got %q`, kv)
		}
		if w.o.Allow[name], err = kube.ParseAllow([]byte(text)); err != nil {
			return nil, usagef("--allow %s: %w", name, err)
		}
	}
	if w.allowLogs {
		all := w.o.Allow["*"]
		all.Logs = true
		w.o.Allow["*"] = all
	}
	w.o.SecretEnv = map[string]map[string]string{}
	for _, kv := range w.secretEnv {
		variable, uri, _ := strings.Cut(kv, "=")
		container, name, ok := strings.Cut(variable, "/")
		if !ok || container == "" || name == "" || !strings.HasPrefix(uri, "kbs://") {
			return nil, usagef("--secret-env: expected CONTAINER/NAME=kbs:///REPOSITORY/TYPE/TAG, got %q", kv)
		}
		if w.o.SecretEnv[container] == nil {
			w.o.SecretEnv[container] = map[string]string{}
		}
		w.o.SecretEnv[container][name] = uri
	}
	if local, err = keyValues("--image", w.images); err != nil {
		return nil, err
	}
	for _, reference := range slices.Sorted(maps.Keys(local)) {
		if !strings.HasPrefix(local[reference], "oci:") && !strings.HasPrefix(local[reference], "docker-archive:") {
			return nil, usagef("--image %s: expected oci:DIR[:TAG] or docker-archive:FILE, got %q", reference, local[reference])
		}
	}
	if w.registries != "" {
		data, err := a.readLimited(w.registries, registries.MaxBytes)
		if err != nil {
			return nil, usagef("--registries-conf: %w", err)
		}
		if w.registry.Registries, err = registries.Parse(data); err != nil {
			return nil, usagef("--registries-conf %s: %w", w.registries, err)
		}
	}
	w.registry.RootPEMs, w.registry.HostRootPEMs, err = registryCAs(w.registryCA)
	return local, err
}

// readManifests reads files; - is standard input.
func (a *app) readManifests(names []string) ([]kube.File, error) {
	var files []kube.File
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			return nil, usagef("%s is given twice", name)
		}
		data, err := a.readLimited(name, kube.MaxFileBytes)
		if err != nil {
			return nil, usageError{err}
		}
		if name == "-" {
			name = "stdin"
		}
		files = append(files, kube.File{Name: name, Data: data})
	}
	return files, nil
}

// generated are workloads with their policies.
type generated struct {
	input  *kube.Input
	images *run.WorkloadImages
	*kube.Result
}

func (g *generated) Close() { _ = g.images.Close() }

// generate writes the policies of the workloads in files.
func (w *workloadFlags) generate(ctx context.Context, a *app, names []string) (_ *generated, err error) {
	local, err := w.options(a)
	if err != nil {
		return nil, err
	}
	files, err := a.readManifests(names)
	if err != nil {
		return nil, err
	}
	g := &generated{}
	if g.input, err = kube.Load(files); err != nil {
		return nil, err
	}
	if g.images, err = run.OpenWorkloadImages(w.registry, local); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			g.Close()
		}
	}()
	o := w.o
	o.Images = g.images
	if g.Result, err = kube.Generate(ctx, g.input, o); err != nil {
		return nil, err
	}
	if len(g.Workloads) == 0 {
		printNotes(a.env.Stderr, g.Notes)
		return nil, errors.New("no workload is left: all have another runtime class")
	}
	if w.workload != "" {
		var have []string
		all := g.Workloads
		g.Workloads = slices.DeleteFunc(slices.Clone(all), func(x kube.Generated) bool {
			have = append(have, x.Workload.String())
			return !strings.EqualFold(x.Workload.String(), w.workload)
		})
		if len(g.Workloads) == 0 {
			return nil, usagef("--workload: expected one of %s, got %q", strings.Join(have, ", "), w.workload)
		}
	}
	return g, nil
}

// printNotes writes notes for a person.
func printNotes(w io.Writer, notes []kube.Problem) {
	for _, n := range notes {
		_, _ = fmt.Fprintf(w, "coffer: note: %s\n", clean(n.String()))
	}
}
