package install

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/coffer-project/coffer/internal/boundedtoml"
)

// Handler is a runtime handler: what a RuntimeClass names.
type Handler struct {
	// Name is the handler's, and by custom the RuntimeClass's.
	Name string
	// TEE is what protects its machines: snp, tdx or soft.
	TEE string
}

// Overhead is what a pod of the handler needs besides what its containers may
// use, in MiB: in all, as its RuntimeClass declares it, and of that in the guest,
// for its kernel and the agent. The rest is the emulator's and the shim's, which
// are in the pod's control group: docs/kubernetes.md says what was measured.
func (h Handler) Overhead() (pod, guest int) {
	if h.TEE == "snp" || h.TEE == "tdx" {
		return 512, 384
	}
	// Without KVM the translator keeps vmm.TranslationMiB of code.
	return 384, 192
}

// Handlers are all there are, in the order in which they are installed.
func Handlers() []Handler {
	return []Handler{{"coffer-qemu-snp", "snp"}, {"coffer-qemu-tdx", "tdx"}, {"coffer-qemu-soft", "soft"}, {"coffer-qemu-soft-tdx", "soft-tdx"}}
}

// Development says whether a handler is for development only, and so not
// installed unless it is named.
func (h Handler) Development() bool { return h.TEE == "soft-tdx" }

// What makes a pod's sandbox (containerd's `sandboxer`).
const (
	// SandboxerPod is containerd, with a pause container: works everywhere.
	SandboxerPod = "podsandbox"
	// SandboxerShim is the shim, without one: from containerd 2.3 on.
	SandboxerShim = "shim"
)

// Oldest containerd that can have SandboxerShim: those before take the options of
// every runtime with it for runc's, and refuse each container of a handler that
// has any (client/task_opts.go of containerd 2.2.9 and 2.3.7).
const shimMajor, shimMinor = 2, 3

// sandboxer refuses one that the node's containerd cannot have.
func (c *Containerd) sandboxer(name string) error {
	if name != SandboxerShim || c.Major > shimMajor || c.Major == shimMajor && c.Minor >= shimMinor {
		return nil
	}
	return fmt.Errorf("sandboxer: %s needs containerd %d.%d or newer, this node has %s: an older one cannot pass a handler's configuration with it (leave --sandboxer at %s, or give --containerd-version where the version was not found out)",
		SandboxerShim, shimMajor, shimMinor, c.Version, SandboxerPod)
}

// firmware is where Linux distributions keep OVMF for confidential guests
// (packages ovmf of Debian 13 and edk2-ovmf of Fedora 42).
func firmware(tee string) []string {
	switch tee {
	case "snp":
		return []string{"/usr/share/ovmf/OVMF.amdsev.fd", "/usr/share/OVMF/OVMF.amdsev.fd", "/usr/share/edk2/ovmf/OVMF.amdsev.fd"}
	case "tdx":
		return []string{"/usr/share/ovmf/OVMF.inteltdx.fd", "/usr/share/OVMF/OVMF.inteltdx.fd", "/usr/share/edk2/ovmf/OVMF.inteltdx.fd"}
	}
	return nil
}

// choose names the handlers to install, with their firmware, and says why others
// are left out.
func (o Options) choose(n *node) (chosen []Handler, ovmf map[string]string, notes []string, err error) {
	ovmf = make(map[string]string)
	for _, name := range o.Handlers {
		if !slices.ContainsFunc(Handlers(), func(h Handler) bool { return h.Name == name }) {
			return nil, nil, nil, fmt.Errorf("handler: expected one of %s, got %q", handlerNames(), name)
		}
	}
	for _, h := range Handlers() {
		named := slices.Contains(o.Handlers, h.Name)
		if len(o.Handlers) > 0 && !named || h.Development() && !named {
			continue
		}
		places := firmware(h.TEE)
		if p := o.Firmware[h.TEE]; p != "" {
			places = []string{p}
		}
		ovmf[h.TEE] = n.firstFile(places)
		if len(places) > 0 && ovmf[h.TEE] == "" {
			missing := fmt.Sprintf("%s: no firmware for it on this node, none of %s is a file (install OVMF for %s guests, or name it with --%s-firmware)",
				h.Name, strings.Join(places, ", "), strings.ToUpper(h.TEE), h.TEE)
			if named || o.Firmware[h.TEE] != "" {
				return nil, nil, nil, fmt.Errorf("%s", missing)
			}
			notes = append(notes, "left out "+missing)
			continue
		}
		chosen = append(chosen, h)
	}
	return chosen, ovmf, notes, nil
}

func (n *node) firstFile(places []string) string {
	for _, p := range places {
		if info, err := n.Stat(rel(p)); err == nil && info.Mode().IsRegular() {
			return p
		}
	}
	return ""
}

// FindFirmware returns the path of the firmware for a TEE below root: named, or
// in the places of Linux distributions; "" where there is none.
func FindFirmware(root, tee, named string) string {
	n, err := Options{Root: root, testOnlyStep: func() {}}.open()
	if err != nil {
		return ""
	}
	defer n.Close() //nolint:errcheck // a directory
	if named != "" {
		return n.firstFile([]string{named})
	}
	return n.firstFile(firmware(tee))
}

func handlerNames() string {
	var names []string
	for _, h := range Handlers() {
		names = append(names, h.Name)
	}
	return strings.Join(names, ", ")
}

// scratch is the size of a machine's disk, in bytes: 8 GiB, of which the node
// stores what is written.
const scratch = 8 << 30

// maxExtra bounds further settings, in bytes.
const maxExtra = 60 << 10

// settings is the configuration file of a handler.
func (h Handler) settings(o Options, guest, ovmf string) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Configuration of the runtime handler %s. Written by coffer install from its\n# flags; what is changed here is lost with the next installation.\n", h.Name)
	fmt.Fprintf(&b, "tee = %q\nguest_image = %q\n", h.TEE, guest)
	if ovmf != "" {
		fmt.Fprintf(&b, "firmware = %q\n", ovmf)
	}
	extra, err := boundedtoml.Decode(o.Extra, maxExtra)
	if err != nil {
		return nil, fmt.Errorf("further settings of handlers: %w", err)
	}
	if _, set := extra["overhead_memory"]; !set {
		pod, guest := h.Overhead()
		fmt.Fprintf(&b, "# With what the emulator needs, the %d MiB that the RuntimeClass declares.\noverhead_memory = %d\n", pod, guest)
	}
	if _, set := extra["scratch"]; !set {
		fmt.Fprintf(&b, "# Images and what containers write lie on a sparse, encrypted disk, not in memory.\nscratch = %d\n", scratch)
	}
	if len(o.Extra) > 0 {
		b.WriteByte('\n')
		b.Write(bytes.TrimSpace(o.Extra))
		b.WriteByte('\n')
	}
	if o.Check != nil {
		if err := o.Check(b.Bytes()); err != nil {
			return nil, fmt.Errorf("configuration of handler %s: %w", h.Name, err)
		}
	}
	return b.Bytes(), nil
}

// CRI plugins of containerd, which have the table of runtimes.
const (
	criPlugin2 = "io.containerd.grpc.v1.cri"    // configuration version 2
	criPlugin3 = "io.containerd.cri.v1.runtime" // versions 3 and 4
)

func criPlugin(configVersion int) string {
	if configVersion >= 3 {
		return criPlugin3
	}
	return criPlugin2
}

// runtime is a handler in containerd's terms.
func (h Handler) runtime(o Options, c *Containerd) map[string]any {
	r := map[string]any{
		"runtime_type":                    RuntimeType,
		"privileged_without_host_devices": true,
		"pod_annotations":                 []string{"coffer-project.io/*", "io.katacontainers.config.hypervisor.cc_init_data"},
		"container_annotations":           []string{"coffer-project.io/*"},
		"options":                         map[string]any{"ConfigPath": path.Join(o.Prefix, "etc", h.Name+".toml")},
	}
	if c.Major >= 2 {
		r["runtime_path"] = path.Join(o.Prefix, "bin", ShimName)
		r["sandboxer"] = o.Sandboxer
	}
	return r
}

// dropIn is the file that adds the handlers to containerd's configuration. base
// is the plugin's section that the file must repeat, or nil.
func dropIn(o Options, c *Containerd, handlers []Handler, base map[string]any) ([]byte, error) {
	runtimes := make(map[string]any)
	for _, h := range handlers {
		runtimes[h.Name] = h.runtime(o, c)
	}
	section := merge(base, map[string]any{"containerd": map[string]any{"runtimes": runtimes}})
	var b bytes.Buffer
	b.WriteString("# Runtime handlers of Coffer. Written by coffer install; coffer uninstall removes it.\n")
	if base != nil {
		b.WriteString("# containerd before 2.0 replaces a plugin's whole section by that of a drop-in: the\n" +
			"# rest of the section is a copy of what its configuration had. After a change\n# there run coffer install again.\n")
	}
	if !c.Template {
		fmt.Fprintf(&b, "version = %d\n\n", c.ConfigVersion)
	}
	enc := toml.NewEncoder(&b)
	if err := enc.Encode(map[string]any{"plugins": map[string]any{criPlugin(c.ConfigVersion): section}}); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// merge is a with b's values over it, tables merged; neither is changed.
func merge(a, b map[string]any) map[string]any {
	out := make(map[string]any, len(a)+len(b))
	for k, v := range a {
		out[k] = v
	}
	for k, v := range b {
		below, ok1 := out[k].(map[string]any)
		over, ok2 := v.(map[string]any)
		if ok1 && ok2 {
			out[k] = merge(below, over)
			continue
		}
		out[k] = v
	}
	return out
}
