package node

import (
	"fmt"
	"path/filepath"
)

// Coffer is where the product's programs and its guest image are.
type Coffer struct {
	// Bin has containerd-shim-coffer-v2, coffer and coffer-agent.
	Bin string
	// Guest is the directory of the guest image.
	Guest string
	// Sandboxer is that of its handlers: see [Handler]. With "shim" there is only
	// [HandlerProcess].
	Sandboxer string
	// Debug makes the shim log more.
	Debug bool
}

// HandlerSoft and HandlerProcess are names of the product's handlers that can run anywhere: a virtual machine with a
// software TEE, and the agent as a process.
const (
	HandlerSoft    = "coffer-qemu-soft"
	HandlerProcess = "coffer-process"
)

// Apply adds the product's handlers to the options of a node: what an
// installation writes, written by hand.
func (c Coffer) Apply(o *Options) {
	if o.Files == nil {
		o.Files = map[string]string{}
	}
	o.Path = append(o.Path, c.Bin)
	common := fmt.Sprintf("default_memory = 256\nstate_dir = \"/run/coffer\"\nsofttee_state = \"/var/lib/coffer/softtee\"\nscratch_directory = \"/var/lib/coffer\"\nkubelet_root = \"/var/lib/kubelet\"\nboot_timeout = \"3m\"\ndebug = %t\n[unsealed_registries]\nca = \"@CA@\"\n", c.Debug)
	o.Files["/var/lib/coffer/.keep"] = ""
	o.Files["/etc/coffer/"+HandlerSoft+".toml"] = fmt.Sprintf("tee = \"soft\"\nguest_image = %q\nscratch = 536870912\n", c.Guest) + common
	o.Files["/etc/coffer/"+HandlerProcess+".toml"] = fmt.Sprintf("tee = \"none\"\ndriver = \"process\"\ndevelopment = true\nagent = %q\n", filepath.Join(c.Bin, "coffer-agent")) + common
	for _, name := range []string{HandlerSoft, HandlerProcess} {
		h := Handler{
			Name: name, Type: "io.containerd.coffer.v2", ConfigPath: "/etc/coffer/" + name + ".toml", Sandboxer: c.Sandboxer,
			PodAnnotations: []string{"io.katacontainers.config.hypervisor.cc_init_data", "coffer-project.io/*"},
			Overhead:       map[string]string{"memory": "768Mi", "cpu": "100m"},
		}
		if c.Sandboxer == "shim" {
			// For these the daemon takes the options of every runtime for runc's, and
			// fails (containerd 2.2 and 2.4, client/task_opts.go): there can be none.
			if name != HandlerProcess {
				continue
			}
			o.Files["/etc/coffer/runtime.toml"] = o.Files[h.ConfigPath]
			h.ConfigPath = ""
		}
		o.Handlers = append(o.Handlers, h)
	}
}
