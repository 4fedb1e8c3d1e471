package faults

import (
	"context"
	"encoding/base64"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/host/cri"
)

// input is something wrong that comes from outside, and the sentence that ends in
// the pod's event. In it DIR is the node's directory, ID the pod, APP the
// container, IMAGE its reference.
type input struct {
	name string
	// set changes the node before anything is started.
	set func(n *node)
	// sandbox and app change the bundles; raw replaces the sandbox's config.json.
	sandbox func(n *node, s *specs.Spec)
	raw     func(n *node) []byte
	app     func(n *node, s *specs.Spec)
	want    string
}

func annotate(name, value string) func(*node, *specs.Spec) {
	return func(_ *node, s *specs.Spec) { s.Annotations[name] = value }
}

func without(kind specs.LinuxNamespaceType) func(*node, *specs.Spec) {
	return func(_ *node, s *specs.Spec) {
		var rest []specs.LinuxNamespace
		for _, ns := range s.Linux.Namespaces {
			if ns.Type != kind {
				rest = append(rest, ns)
			}
		}
		s.Linux.Namespaces = rest
	}
}

func netnsAt(path string) func(*node, *specs.Spec) {
	return func(n *node, s *specs.Spec) {
		for i, ns := range s.Linux.Namespaces {
			if ns.Type == specs.NetworkNamespace {
				s.Linux.Namespaces[i].Path = strings.ReplaceAll(path, "DIR", n.dir)
			}
		}
	}
}

func setting(key, value string) func(*node) {
	return func(n *node) { n.settings[key] = strings.ReplaceAll(value, "DIR", n.dir) }
}

// machine is a node whose pods are virtual machines, as far as they get.
func machine(more ...func(*node)) func(*node) {
	return func(n *node) {
		delete(n.settings, "agent")
		n.settings["driver"], n.settings["tee"], n.settings["accelerator"] = `"qemu"`, `"none"`, `"tcg"`
		n.settings["guest_image"] = quoted(n.path("none"))
		for _, m := range more {
			m(n)
		}
	}
}

// small makes a directory of the node a file system of its own.
func (n *node) small(dir, options string) {
	n.t.Helper()
	at := n.path(dir)
	if err := unix.Mount("tmpfs", at, "tmpfs", 0, options); err != nil {
		n.t.Fatal(err)
	}
	n.own = append(n.own, at)
	n.cuts = append(n.cuts, func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
}

// fill takes all room of such a directory.
func (n *node) fill(dir string) {
	_ = os.WriteFile(n.path(dir, ownFile), make([]byte, 8<<20), 0o600)
}

func smallDir(dir, options string) func(*node) { return func(n *node) { n.small(dir, options) } }

func full(dir string) func(*node) {
	return func(n *node) {
		n.small(dir, "size=64k")
		n.fill(dir)
	}
}

func gzipped(text string) string {
	gz, err := initdata.Compress([]byte(text))
	if err != nil {
		return err.Error()
	}
	return base64.StdEncoding.EncodeToString(gz)
}

var inputs = []input{
	// The bundle.
	{name: "broken JSON", raw: func(*node) []byte { return []byte(`{"ociVersion": "1.1.0", "annotations": {`) }, want: "io.containerd.coffer.v2: bundle: DIR/b/ID/config.json: unexpected EOF"},
	{name: "huge bundle", raw: func(*node) []byte { return []byte(`{"a":"` + strings.Repeat("x", 9<<20) + `"}`) }, want: "create container \"ID\": OCI bundle DIR/b/ID: DIR/b/ID/config.json: expected at most 8388608 bytes, got more"},
	{name: "huger bundle", raw: func(*node) []byte { return []byte(`{"a":"` + strings.Repeat("x", 17<<20) + `"}`) }, want: "io.containerd.coffer.v2: bundle: DIR/b/ID/config.json: expected at most 16777216 bytes, got more"},
	{name: "not Linux", raw: func(*node) []byte { return []byte(`{"ociVersion": "1.1.0", "annotations": {}}`) }, want: "create container \"ID\": the bundle is not of a Linux container: the guest runs no other"},
	{name: "no arguments", app: func(_ *node, s *specs.Spec) { s.Process.Args = nil }, want: "create container \"APP\": container app: expected a process with arguments, got none: the image has neither entrypoint nor command; give the container a command"},
	{name: "no process", app: func(_ *node, s *specs.Spec) { s.Process = nil }, want: "create container \"APP\": container app: expected a process with arguments, got none: the image has neither entrypoint nor command; give the container a command"},
	{name: "no image", app: func(_ *node, s *specs.Spec) { delete(s.Annotations, "io.kubernetes.cri.image-name") }, want: "create container \"APP\": the bundle does not name its image, which the guest pulls itself: give its reference with the annotation coffer-project.io/image (ctr run --annotation coffer-project.io/image=REGISTRY/REPOSITORY:TAG …)"},
	{name: "bad container name", app: annotate("io.kubernetes.cri.container-name", "../x"), want: "create container \"APP\": container name: expected a DNS label of at most 63 characters, got \"../x\""},
	{name: "unknown kind", sandbox: annotate("io.kubernetes.cri.container-type", "pea"), want: "create container \"ID\": annotation io.kubernetes.cri.container-type: expected sandbox or container, got \"pea\""},
	{name: "unknown annotation", sandbox: annotate("coffer-project.io/colour", "red"), want: "create container \"ID\": annotation \"coffer-project.io/colour\": this node's runtime handler lets pods set coffer-project.io/vcpus, coffer-project.io/memory, coffer-project.io/volumes; remove it"},
	{name: "hooks", sandbox: func(_ *node, s *specs.Spec) { s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/x"}}} }, want: "create container \"ID\": the bundle has OCI hooks: they are programs of the node, which would not see the container; remove what adds them (containerd's base_runtime_spec, NRI or CDI) for this runtime handler"},
	{name: "secret without initdata", sandbox: annotate("coffer-project.io/secret-env.app.KEY", "default/key/1"), want: "create container \"ID\": annotation \"coffer-project.io/secret-env.app.KEY\" asks for a secret, and the pod has no initdata: run coffer prepare on its manifest, and let containerd pass on annotations (pod_annotations of the runtime handler)"},
	{name: "vcpus", sandbox: annotate("coffer-project.io/vcpus", "many"), want: "create container \"ID\": annotation coffer-project.io/vcpus: expected a number from 1 to 32, got \"many\""},
	{name: "memory", sandbox: annotate("io.kubernetes.cri.sandbox-memory", "99999999999999"), want: "create container \"ID\": memory: the limits of the pod's containers and the overhead of 512 MiB are 95367944 MiB, and this runtime handler gives a machine at most 65536 MiB: lower resources.limits.memory, or raise max_memory"},
	// Initdata.
	{name: "initdata not base64", sandbox: annotate(cri.AnnotationInitdata, "%%%"), want: "create container \"ID\": annotation io.katacontainers.config.hypervisor.cc_init_data: expected base64 (RFC 4648, padded, no line breaks) of gzip data: illegal base64 data at input byte 0"},
	{name: "initdata not gzip", sandbox: annotate(cri.AnnotationInitdata, base64.StdEncoding.EncodeToString([]byte("algorithm = 1"))), want: "create container \"ID\": annotation io.katacontainers.config.hypervisor.cc_init_data: expected gzip of an initdata document of at most 1048576 bytes: initdata: not gzip data: gzip: invalid header"},
	{name: "initdata cut", sandbox: annotate(cri.AnnotationInitdata, gzipped("version = \"0.1.0\"")[:24]), want: "create container \"ID\": annotation io.katacontainers.config.hypervisor.cc_init_data: expected gzip of an initdata document of at most 1048576 bytes: initdata: gzip data: unexpected EOF"},
	{name: "initdata too large", sandbox: annotate(cri.AnnotationInitdata, strings.Repeat("A", 4<<20)), want: "create container \"ID\": annotation io.katacontainers.config.hypervisor.cc_init_data: expected at most 1048576 bytes of gzip data, got 3145728: shorten the document (coffer prepare --registry-ca lists fewer authorities)"},
	{name: "initdata bomb", sandbox: annotate(cri.AnnotationInitdata, gzipped(strings.Repeat("#", 64<<20))), want: "create container \"ID\": annotation io.katacontainers.config.hypervisor.cc_init_data: expected base64 (RFC 4648, padded, no line breaks) of gzip data: illegal base64 data at input byte 8"},
	{name: "initdata not TOML", sandbox: annotate(cri.AnnotationInitdata, gzipped("<xml/>")), want: "create container \"ID\": annotation io.katacontainers.config.hypervisor.cc_init_data: initdata: line 1: expected '.' or '=', but got '<' instead (coffer prepare writes it)"},
	{name: "initdata without algorithm", sandbox: annotate(cri.AnnotationInitdata, gzipped("version = \"0.1.0\"\n[data]\n")), want: "create container \"ID\": annotation io.katacontainers.config.hypervisor.cc_init_data: initdata: key \"algorithm\" is missing (coffer prepare writes it)"},
	{name: "initdata without policy", sandbox: annotate(cri.AnnotationInitdata, gzipped("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n")), want: "create container \"ID\": the guest did not take the pod: the guest: refused (rule initdata.content): initdata.pod-policy.json: expected a pod policy, got no such entry"},
	// The node's namespaces.
	{name: "hostNetwork", sandbox: without(specs.NetworkNamespace), want: "create container \"ID\": the pod asks for the node's network (hostNetwork): it runs in a virtual machine with a network of its own; remove hostNetwork, or use another runtimeClassName"},
	{name: "hostPID", sandbox: without(specs.PIDNamespace), want: "create container \"ID\": the pod asks for the node's processes (hostPID): its virtual machine does not see them; remove hostPID, or use another runtimeClassName"},
	{name: "hostIPC", sandbox: without(specs.IPCNamespace), want: "create container \"ID\": the pod asks for the node's IPC (hostIPC): its virtual machine has none with the node; remove hostIPC, or use another runtimeClassName"},
	{name: "user namespace", sandbox: func(_ *node, s *specs.Spec) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	}, want: "create container \"ID\": the pod asks for a user namespace (hostUsers: false): the virtual machine is the boundary, and users are those of the guest; remove hostUsers"},
	// The network.
	{name: "network namespace without a path", sandbox: netnsAt(""), want: "create container \"ID\": the pod has a network namespace without a path: expected the one that the CNI plugins set up"},
	{name: "network namespace missing", sandbox: netnsAt("DIR/netns"), want: "create container \"ID\": process ID: network namespace: open DIR/netns: no such file or directory"},
	{name: "network namespace missing for a machine", set: machine(), sandbox: netnsAt("DIR/netns"), want: "create container \"ID\": network: DIR/netns: there is no such network namespace (it was taken down, or the node was started anew; the kubelet makes the pod again)"},
	{name: "network namespace is a file", set: machine(), sandbox: netnsAt("DIR/runtime.toml"), want: "create container \"ID\": network: DIR/runtime.toml: there is no such network namespace: it is a file on which no namespace is mounted (as after a restart of the node; the kubelet makes the pod again)"},
	{name: "CNI without addresses", set: machine(func(n *node) { n.bare() }), want: "no interface has an address: there is eth0 (the CNI plugin has set up nothing; see its configuration in /etc/cni/net.d, whether its daemon runs on this node, whether its address pool is exhausted, and the log of containerd)"},
	// What a machine is made of.
	{name: "guest image missing", set: machine(func(n *node) { n.veth() }), want: "create container \"ID\": sandbox ID: no guest image in DIR/none: open DIR/none/manifest.json: no such file or directory (make one with: coffer guest build)"},
	{name: "agent missing", set: setting("agent", `"DIR/none"`), want: "create container \"ID\": process ID: start DIR/none: fork/exec DIR/none: no such file or directory (agent of the runtime configuration has to name the program coffer-agent)"},
	{name: "agent is no program", set: func(n *node) { n.write("agent", "no program"); n.settings["agent"] = quoted(n.path("agent")) }, want: "create container \"ID\": process ID: start DIR/agent: fork/exec DIR/agent: permission denied (agent of the runtime configuration has to name the program coffer-agent)"},
	{name: "agent dies", set: func(n *node) { n.settings["agent"] = quoted(n.liar("dies")) }, want: "create container \"ID\": process ID: agent process ID: it failed (exit status 3); last lines of its console:"},
	{name: "agent says nothing", set: func(n *node) {
		n.settings["agent"], n.settings["boot_timeout"] = quoted(n.liar("deaf")), `"1s"`
	}, want: "create container \"ID\": process ID: agent channel: waiting for the guest agent: the agent did not answer within 1s"},
	// The image.
	{name: "image not found", app: func(n *node, s *specs.Spec) {
		s.Annotations["io.kubernetes.cri.image-name"] = registryName + ":" + n.reg.port + "/test/other:1"
	}, want: "create container \"APP\": the guest: image host.coffer.internal:PORT/test/other:1: registry host.coffer.internal:PORT, repository test/other: HEAD /v2/test/other/manifests/1: HTTP status 404 Not Found; check the image's registry, repository, tag and digest, and that it was pushed there"},
	{name: "tag not found", app: func(n *node, s *specs.Spec) {
		s.Annotations["io.kubernetes.cri.image-name"] = registryName + ":" + n.reg.port + "/test/busybox:none"
	}, want: "create container \"APP\": the guest: image host.coffer.internal:PORT/test/busybox:none: registry host.coffer.internal:PORT, repository test/busybox: HEAD /v2/test/busybox/manifests/none: HTTP status 404 Not Found; check the image's registry, repository, tag and digest, and that it was pushed there"},
	{name: "registry wants credentials", set: func(n *node) { n.reg.login.Store(true) }, want: "the registry wants credentials; there are none for host.coffer.internal:PORT/test/busybox: add them to the auth.json of authenticated_registry_credentials_uri (coffer run --credentials; for pods without initdata, unsealed_registries.auth of the node), unless the name of the repository is wrong"},
	{name: "registry unreachable", app: annotate("io.kubernetes.cri.image-name", registryName+":1/test/busybox:1"), want: "create container \"APP\": the guest: image host.coffer.internal:1/test/busybox:1: registry host.coffer.internal:1, repository test/busybox: dial tcp 198.51.100.1:1: connect: connection refused (after 5 attempts); check that the server runs, and that the pod's network lets it be reached"},
	{name: "registry unknown", app: annotate("io.kubernetes.cri.image-name", "nowhere.invalid/test/busybox:1"), want: "create container \"APP\": the guest: image nowhere.invalid/test/busybox:1: registry nowhere.invalid, repository test/busybox: dial tcp: lookup nowhere.invalid"},
	{name: "registry unknown, what to do", app: annotate("io.kubernetes.cri.image-name", "nowhere.invalid/test/busybox:1"), want: "; check the name and the pod's DNS"},
	{name: "not a reference", app: annotate("io.kubernetes.cri.image-name", "A B"), want: "create container \"APP\": the guest: refused (rule container.image): image: expected an image reference, got \"A B\" (expected an image reference [REGISTRY/]REPOSITORY[:TAG][@sha256:…], got \"A B\")"},
	{name: "image by id", app: annotate("io.kubernetes.cri.image-name", "sha256:"+strings.Repeat("0", 64)), want: "create container \"APP\": image sha256:0000000000000000000000000000000000000000000000000000000000000000: the container runtime knows it by its id only, by which the guest cannot pull it: write the image's registry, repository and tag"},
	{name: "program not found", app: func(_ *node, s *specs.Spec) { s.Process.Args = []string{"/bin/none"} }, want: "create container \"APP\": the guest: container APP: crun create: exit status 1: executable file `/bin/none` not found in $PATH: No such file or directory; check the container's command, and that its image has this program"},
	// Disks.
	{name: "state directory full", set: full("state"), want: "io.containerd.coffer.v2: pod state: write DIR/state/k8s.io/ID/.state.json: no space left on device; the node's directory DIR/state/k8s.io/ID is full: free space or inodes there (df DIR/state/k8s.io/ID, df -i DIR/state/k8s.io/ID)"},
	// A page is the bundle's config.json. What containerd reads of the shim's log
	// is in a pipe beside it.
	{name: "bundle's directory full", set: smallDir("b", "size=4k"), want: "no space left on device; the node's directory DIR/b/ID is full: free space or inodes there (df DIR/b/ID, df -i DIR/b/ID)"},
	{name: "socket directory full", set: smallDir("s", "nr_inodes=1"), want: ": bind: no space left on device; the node's directory DIR/s is full: free space or inodes there (df DIR/s, df -i DIR/s)"},
	{name: "scratch directory full", set: machine(func(n *node) { n.veth() }, full("scratch"), setting("scratch", "33554432")), want: "create container \"ID\": scratch: the node's scratch_directory DIR/scratch is full, 0 bytes are free: free space there (df DIR/scratch), or name another in the runtime configuration"},
	{name: "scratch directory missing", set: machine(func(n *node) { n.veth() }, setting("scratch", "33554432"), setting("scratch_directory", `"DIR/none"`)), want: "no such file or directory (make the directory, or name another in scratch_directory of the runtime configuration)"},
	// The handler's configuration.
	{name: "unknown key", set: setting("colour", `"red"`), want: "io.containerd.coffer.v2: runtime configuration DIR/runtime.toml: colour: unknown key (the comments of the file that coffer install writes list all)"},
	{name: "not TOML", set: setting("colour", `[`), want: "io.containerd.coffer.v2: runtime configuration DIR/runtime.toml: line 3: expected value but found \"debug\" instead"},
	{name: "wrong type", set: setting("default_vcpus", `"two"`), want: "io.containerd.coffer.v2: runtime configuration DIR/runtime.toml: toml: line 3 (last key \"default_vcpus\"): incompatible types: TOML value has type string; destination has type integer"},
	{name: "out of bounds", set: setting("default_vcpus", `0`), want: "io.containerd.coffer.v2: runtime configuration DIR/runtime.toml: default_vcpus: expected 1 to 32 (max_vcpus), got 0"},
	{name: "process without development", set: setting("development", `false`), want: "io.containerd.coffer.v2: runtime configuration DIR/runtime.toml: driver: process isolates nothing and is for development only; it needs development = true"},
	{name: "bad tee", set: setting("tee", `"sgx"`), want: "io.containerd.coffer.v2: runtime configuration DIR/runtime.toml: tee: expected auto, soft, soft-tdx, snp, tdx or none, got \"sgx\""},
}

func TestInputs(t *testing.T) {
	need(t)
	for _, in := range inputs {
		t.Run(in.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			if in.set != nil {
				in.set(n)
			}
			app, err := n.tryPod(in)
			n.says(err)
			if err != nil {
				got := strings.NewReplacer(n.dir, "DIR", n.pod, "ID", n.image, "IMAGE", n.reg.port, "PORT").Replace(err.Error())
				if app != "" {
					got = strings.ReplaceAll(got, app, "APP")
				}
				if !strings.Contains(got, in.want) {
					t.Errorf("want: %s\n got: %s", in.want, got)
				}
			}
			n.conclude()
			n.expectClean()
		})
	}
}

// tryPod goes through a pod's life until something fails.
func (n *node) tryPod(in input) (app string, err error) {
	s := n.specOf(n.pod, "sandbox")
	if in.sandbox != nil {
		in.sandbox(n, s)
	}
	var config any = s
	if in.raw != nil {
		config = in.raw(n)
	}
	n.makeBundle(n.pod, config)
	if err := n.start(n.pod); err != nil {
		return "", err
	}
	ctx, cancel := n.call()
	defer cancel()
	if err := n.create(ctx, n.pod); err != nil || in.app == nil && in.sandbox == nil && in.set == nil {
		return "", err
	}
	n.noteSpaces()
	app = newID(n.t)
	c := n.specOf(app, "container")
	for name, value := range s.Annotations {
		if !strings.HasPrefix(name, "io.kubernetes.cri.") {
			c.Annotations[name] = value
		}
	}
	if in.app != nil {
		in.app(n, c)
	}
	n.makeBundle(app, c)
	if err := n.start(app); err != nil {
		return app, err
	}
	return app, n.runContainer(ctx, app)
}

func (n *node) runContainer(ctx context.Context, id string) error {
	if err := n.create(ctx, id); err != nil {
		return err
	}
	return n.begin(ctx, id)
}
