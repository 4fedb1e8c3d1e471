package node

import (
	"fmt"
	"os"
	"path/filepath"
)

// Coffer is where the product's programs and its guest image are.
type Coffer struct {
	// Bin has containerd-shim-coffer-v2, coffer and coffer-agent.
	Bin string
	// Guest is the directory of the guest image.
	Guest string
	// Manifests is the directory of those for Kubernetes, deploy/manifests.
	Manifests string
	// Sandboxer is that of its handlers: see [Handler]. With "shim" before
	// containerd 2.3 there is only [HandlerProcess].
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

// settingsFile has what the handlers of tests have in common.
const settingsFile = "/etc/coffer-node/settings.toml"

// Apply adds the product's handlers to the options of a node: [Coffer.Install]
// installs those with machines before containerd is started for the first time,
// if their programs are there, and [Coffer.Admit] makes their runtime classes.
// HandlerProcess, which is for development and not installed, is written by hand.
func (c Coffer) Apply(o *Options) {
	c.AddSettings(o)
	h := Handler{
		Name: HandlerProcess, Type: "io.containerd.coffer.v2", ConfigPath: "/etc/coffer-node/" + HandlerProcess + ".toml", Sandboxer: c.Sandboxer,
		PodAnnotations: []string{"io.katacontainers.config.hypervisor.cc_init_data", "coffer-project.io/*"},
		Overhead:       map[string]string{"memory": "640Mi", "cpu": "100m"},
	}
	text := fmt.Sprintf("tee = \"none\"\ndriver = \"process\"\ndevelopment = true\nagent = %q\n", filepath.Join(c.Bin, "coffer-agent")) + o.Files[settingsFile]
	// Before 2.3 daemons take the options of every runtime with such sandboxes for
	// runc's, and fail (client/task_opts.go of containerd 2.2.9): there can be none.
	old := c.Sandboxer == "shim" && o.Containerd == "2.2"
	if old {
		h.ConfigPath = ""
		o.Files["/etc/coffer/runtime.toml"] = text
	} else {
		o.Files[h.ConfigPath] = text
	}
	o.Handlers = append(o.Handlers, h)
	if old || c.missing() {
		o.Path = append(o.Path, c.Bin)
		return
	}
	o.Prepare, o.Ready = c.Install, c.Admit
}

// AddSettings adds a file with settings for handlers to the options of a node:
// small machines, and the authority of the node's registry.
func (c Coffer) AddSettings(o *Options) {
	if o.Files == nil {
		o.Files = map[string]string{}
	}
	o.Files["/var/lib/coffer/.keep"] = ""
	o.Files[settingsFile] = fmt.Sprintf("default_memory = 256\nboot_timeout = \"3m\"\nscratch = 536870912\nscratch_directory = \"/var/lib/coffer\"\ndebug = %t\n[unsealed_registries]\nca = \"@CA@\"\n", c.Debug)
}

// missing says whether there is nothing to install.
func (c Coffer) missing() bool {
	for _, f := range []string{filepath.Join(c.Bin, "coffer"), filepath.Join(c.Bin, "containerd-shim-coffer-v2"), filepath.Join(c.Guest, "manifest.json")} {
		if _, err := os.Stat(f); err != nil {
			return true
		}
	}
	return false
}
