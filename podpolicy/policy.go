// Package podpolicy is the owner's definition of a pod and the rules by which
// the guest holds the host to it.
//
// A [Policy] says what the pod is: its containers by image digest, their
// arguments, environment, user, mounts and limits, and what the host may do
// with them. It is data without logic, travels in initdata, and its digest is
// part of the launch evidence. What the host sends is a proposal. A [Guard]
// answers each proposal with an effective configuration or a [*Refusal]: the
// configuration is built from the policy and the pulled image, and takes from
// the proposal only the values of slots that the policy leaves open. So nothing
// that the policy does not mention can get in, and a proposal that differs is
// refused by rule, path, expected and got.
//
// Underneath, every decision is a pure function of policy, state and proposal;
// the Guard adds the lock and keeps the state. docs/pod-policy.md is the
// reference of all fields, slots and rules.
package podpolicy

// What a policy document says it is.
const (
	APIVersion = "coffer/v1"
	Kind       = "PodPolicy"
)

// Policy is a pod as its owner defines it. The zero value is not valid; take
// one from [Parse] or [FromImage], or fill it and call [Policy.Validate].
type Policy struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Pod        Pod    `json:"pod"`
	// Containers in the order in which init containers and sidecars start.
	Containers []Container       `json:"containers"`
	Volumes    map[string]Volume `json:"volumes,omitempty"`
	Network    Network           `json:"network,omitzero"`
}

// Pod is what all containers share.
type Pod struct {
	Name      Name `json:"name"`
	Namespace Name `json:"namespace,omitzero"`
	Hostname  Name `json:"hostname,omitzero"`
	// SharePID gives all containers one PID namespace.
	SharePID bool `json:"sharePID,omitempty"`
	// Sysctls are exactly those set in the pod; only namespaced ones are legal.
	Sysctls map[string]string `json:"sysctls,omitempty"`
}

// Container is one container of the pod.
type Container struct {
	Name string `json:"name"`
	Role Role   `json:"role,omitempty"`
	// Target names the container among whose processes an ephemeral container
	// is; empty: it has its own.
	Target string `json:"target,omitempty"`
	Image  Image  `json:"image"`
	// Args is the whole command line; nil takes the image's entrypoint and
	// command.
	Args []string `json:"args,omitempty"`
	// ExpandArgs replaces $(NAME) in Args by the container's variable of that
	// name, inside the guest, as Kubernetes does: $$ stands for a dollar sign,
	// and a name that is no variable stays as it is written.
	ExpandArgs bool `json:"expandArgs,omitempty"`
	// Cwd is the working directory; empty takes the image's.
	Cwd string `json:"cwd,omitempty"`
	// User; nil takes the image's.
	User *User `json:"user,omitempty"`
	// Env is added to the image's environment, and wins over it.
	Env map[string]EnvValue `json:"env,omitempty"`
	// ServiceEnv names the Kubernetes services whose variables the host may add.
	ServiceEnv   []string `json:"serviceEnv,omitempty"`
	Capabilities []string `json:"capabilities,omitempty"`
	Seccomp      Seccomp  `json:"seccomp,omitempty"`
	// NoNewPrivileges is on unless it is turned off.
	NoNewPrivileges OnUnlessOff `json:"noNewPrivileges"`
	ReadOnlyRoot    bool        `json:"readOnlyRoot,omitempty"`
	Terminal        bool        `json:"terminal,omitempty"`
	Mounts          []Mount     `json:"mounts,omitempty"`
	// Devices are block volumes that the container gets as devices.
	Devices []Device `json:"devices,omitempty"`
	// TerminationMessagePath is the file that the container leaves its last words
	// in; empty is [DefaultTerminationPath].
	TerminationMessagePath string `json:"terminationMessagePath,omitempty"`
	Allow                  Allow  `json:"allow,omitzero"`
	Limits                 Limits `json:"limits,omitzero"`

	// An unsealed pod: what the host says, and no policy has.
	unmasked bool
	rlimits  map[string]RLimit
}

// Role says when a container runs. Empty is RoleApp.
type Role string

// Roles: init containers run to success one after the other, in the order of
// the policy, before any app container; a sidecar is started in its place in
// that order and keeps running.
const (
	RoleApp     Role = "app"
	RoleInit    Role = "init"
	RoleSidecar Role = "sidecar"
	// RoleEphemeral is a container for debugging, which may be started at any
	// time and need not be.
	RoleEphemeral Role = "ephemeral"
)

// Image is what a container is made of.
type Image struct {
	// Digest of the index or platform manifest, sha256:<64 hex digits>.
	Digest string `json:"digest"`
	// From lists the repositories it may come from, registry included, without
	// tag; the host chooses among them.
	From []string `json:"from"`
	// Stub is the digest of an image without content that the host may name
	// instead of Digest, because its container runtime has pulled that one. What
	// is run is Digest, whichever the host names. Empty: there is none.
	Stub string `json:"stub,omitempty"`

	tag string // an unsealed pod: what the host named instead of a digest
}

// User is a process's identity.
type User struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
	// Groups are the supplementary groups.
	Groups []uint32 `json:"groups,omitempty"`
}

// Seccomp names a filter. Empty is SeccompDefault.
type Seccomp string

// Seccomp filters.
const (
	SeccompDefault    Seccomp = "default"
	SeccompUnconfined Seccomp = "unconfined"
)

// Mount puts a volume into a container.
type Mount struct {
	Path   string `json:"path"`
	Volume string `json:"volume"`
	// SubPath is a directory inside the volume, which is made if it is missing, or a
	// file that a container has made there; of a files volume a file that it has,
	// or a directory of files, as they are when the container is created.
	SubPath  string `json:"subPath,omitempty"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Device puts a block volume into a container as a device node.
type Device struct {
	// Path of the node, for example /dev/xvda.
	Path     string `json:"path"`
	Volume   string `json:"volume"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Allow is what the host may do with a container. The zero value allows
// nothing but to start it once, to stop it and to delete it.
type Allow struct {
	// Exec lists the commands that may be run inside.
	Exec []ExecRule `json:"exec,omitempty"`
	// Logs lets the host read standard output and standard error.
	Logs bool `json:"logs,omitempty"`
	// Attach lets the host read them too, and open standard input again after
	// its first stream.
	Attach bool `json:"attach,omitempty"`
	// Stdin lets the host write standard input.
	Stdin       bool     `json:"stdin,omitempty"`
	PortForward []uint16 `json:"portForward,omitempty"`
	// Copy lets the host copy files out of and into directories (kubectl cp).
	Copy Copy `json:"copy,omitzero"`
	// Signals the host may send besides KILL, TERM, INT and the image's stop
	// signal.
	Signals  []string `json:"signals,omitempty"`
	Restarts Restarts `json:"restarts,omitempty"`
}

// Copy lists clean absolute paths; each stands for itself and what is below.
type Copy struct {
	From []string `json:"from,omitempty"`
	To   []string `json:"to,omitempty"`
}

// Restarts says whether a container may be started again. Empty is
// RestartNever.
type Restarts string

// Restart rules: one start; another after a failure; another after every end.
// At no time do two instances of a container exist.
const (
	RestartNever     Restarts = "never"
	RestartOnFailure Restarts = "onFailure"
	RestartAlways    Restarts = "always"
)

// Limits bound a container. A zero field is no limit.
type Limits struct {
	Memory Memory `json:"memory,omitzero"`
	CPUs   CPUs   `json:"cpus,omitzero"`
	// PIDs is the greatest number of processes and threads.
	PIDs uint32 `json:"pids,omitempty"`
}

// Volume is a directory that containers share.
type Volume struct {
	Kind VolumeKind `json:"kind"`
	// Medium and Size belong to ephemeral volumes. Empty is MediumDisk; no
	// size is no limit of its own.
	Medium Medium `json:"medium,omitempty"`
	Size   Memory `json:"size,omitzero"`
	// Pinned and Host belong to files volumes: contents by digest
	// (sha256:<64 hex digits>) and contents that the host chooses.
	Pinned map[string]string `json:"pinned,omitempty"`
	Host   *HostFiles        `json:"host,omitempty"`
	// Sealed and Resources belong to files volumes, too: files whose contents
	// are sealed secrets (sealed.…), and KBS resources (kbs:///…), by name.
	// The guest fetches them; they never pass through the host.
	Sealed    map[string]string `json:"sealed,omitempty"`
	Resources map[string]string `json:"resources,omitempty"`
	// Mode is the permission of pinned, sealed and resource files, octal;
	// empty is "0644". Modes are exceptions by name, for any file.
	Mode  string            `json:"mode,omitempty"`
	Modes map[string]string `json:"modes,omitempty"`
	// Group owns the files of a files volume and the directory of an ephemeral
	// or block one (Kubernetes' fsGroup); nil is the root group.
	Group *uint32 `json:"group,omitempty"`
	// Key and Filesystem belong to block volumes; no file system means that
	// containers have the volume as a device.
	Key        string `json:"key,omitempty"`
	Filesystem string `json:"filesystem,omitempty"`
}

// VolumeKind is a kind of volume.
type VolumeKind string

// Volume kinds.
const (
	VolumeEphemeral VolumeKind = "ephemeral"
	VolumeFiles     VolumeKind = "files"
	VolumeBlock     VolumeKind = "block"
)

// Medium is what an ephemeral volume lies on.
type Medium string

// Media: both are the pod VM's own, encrypted memory or encrypted scratch.
const (
	MediumDisk   Medium = "disk"
	MediumMemory Medium = "memory"
)

// HostFiles are files whose contents the host chooses. They are untrusted.
type HostFiles struct {
	// Names are exactly the files that must be there.
	Names []string `json:"names"`
	// MaxBytes bounds all of them together.
	MaxBytes int64 `json:"maxBytes"`
	// Mode is their permission, octal; empty is "0644".
	Mode string `json:"mode,omitempty"`

	any bool // an unsealed pod: any names
}

// Network is what the pod knows of its network. Interfaces, routes and
// neighbours are always the host's: it owns the wire.
type Network struct {
	DNS   DNS   `json:"dns,omitzero"`
	Hosts Hosts `json:"hosts,omitzero"`
}

// DNS is the resolver's configuration: the host's ({"host":"dns"}), or pinned;
// the zero value is none.
type DNS struct {
	Host     Slot     `json:"host,omitempty"`
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// Hosts are entries of /etc/hosts besides the pod's own: the host's
// ({"host":"hosts"}), or pinned; the zero value is none.
type Hosts struct {
	Host    Slot        `json:"host,omitempty"`
	Entries []HostEntry `json:"entries,omitempty"`
}

// HostEntry gives names to an address.
type HostEntry struct {
	Address string   `json:"address"`
	Names   []string `json:"names"`
}
