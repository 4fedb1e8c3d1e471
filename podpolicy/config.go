package podpolicy

// SandboxConfig is the pod as it will be.
type SandboxConfig struct {
	// Name and Namespace may be empty: the policy does not mention them.
	Name, Namespace string
	Hostname        string
	SharePID        bool
	Sysctls         map[string]string
	Network         NetworkConfig
}

// NetworkConfig is a network whose form was checked. Interfaces, routes and
// neighbours are the host's and untrusted; so are DNS and hosts unless the
// policy pins them.
type NetworkConfig struct {
	Interfaces []Interface
	Routes     []Route
	Neighbours []Neighbour
	DNS        DNSProposal
	Hosts      []HostEntry
}

// ContainerConfig is a container as it will run: all that the builder of an
// OCI spec needs, in terms of the pod. It shares no memory with a proposal.
type ContainerConfig struct {
	ID, Name string
	Role     Role
	Image    ImageRef
	Args     []string
	// ExpandArgs: Args hold references to variables whose values are secrets;
	// [Expand] replaces them once these are known.
	ExpandArgs      bool
	Env             []EnvVar
	Cwd             string
	User            User
	Capabilities    []string
	NoNewPrivileges bool
	ReadOnlyRoot    bool
	Seccomp         Seccomp
	// Mounts have parents before children; devices are among them.
	Mounts   []MountConfig
	Limits   Resources
	Terminal bool
	// Stdin: the process gets a standard input that the host writes.
	Stdin    bool
	SharePID bool
	// Target is the id of the running container whose PID namespace it joins;
	// empty: it has its own, or the pod's.
	Target string
	// Unmasked leaves the kernel's files as they are; RLimits are by name. Only
	// unsealed pods have them.
	Unmasked bool
	RLimits  map[string]RLimit
	// TerminationPath is a file that the container may write its last words to;
	// empty: nobody has asked for one.
	TerminationPath string
}

// EnvVar is a variable whose value is Value, or is to be fetched: Sealed is a
// sealed secret and Resource a KBS URI; or is to be made: Expand holds
// references to variables of these two kinds, which [Expand] replaces once they
// are known. References to other variables have been replaced. At most one of
// the four is not empty.
type EnvVar struct {
	Name, Value, Sealed, Resource, Expand string

	// optional: a proposal's environment need not name it.
	optional bool
}

// MountConfig is a mount with what its volume is.
type MountConfig struct {
	Path, Volume, SubPath string
	ReadOnly              bool
	// Device: Path is the node of the volume's device, not a directory.
	Device bool
	Kind   VolumeKind
	// Medium and SizeBytes (0: none) are an ephemeral volume's.
	Medium    Medium
	SizeBytes uint64
}

// VolumeConfig is a volume of the policy with its defaults spelled out; see
// [Volume] for the fields. It shares no memory with the policy.
type VolumeConfig struct {
	Name      string
	Kind      VolumeKind
	Medium    Medium
	SizeBytes uint64
	// Key is a KBS URI; an empty Filesystem means a device.
	Key, Filesystem string
	// Disk is the serial number of the disk that was attached, or empty.
	Disk string
	// Sealed and Resources are files by name, whose contents the guest fetches.
	Sealed, Resources map[string]string
	// HostFiles: some files of the volume come by [Guard.PutFiles]; a container
	// does not start without them.
	HostFiles bool
	// Executable: files of the volume may be run, because the policy gives some of
	// them such a mode, or the pod is the host's.
	Executable bool
	// Mode and Modes are permission bits, octal.
	Mode  string
	Modes map[string]string
	Group *uint32
}

// FileMode is the permission of a file of the volume that the guest fetches.
func (c VolumeConfig) FileMode(name string) (uint32, error) {
	return parseMode(orDefault(orDefault(c.Modes[name], c.Mode), defaultFileMode))
}

// ExecConfig is a command as it will run in its container.
type ExecConfig struct {
	Container, ID   string
	Args            []string
	Env             []EnvVar
	Cwd             string
	User            User
	Capabilities    []string
	NoNewPrivileges bool
	Terminal, Stdin bool
	// Output: the host may read standard output and standard error.
	Output bool
}

// ImageConfig is what the guest knows of an image after it has pulled, verified
// and unpacked it.
type ImageConfig struct {
	// Digest is the index or platform manifest digest that was asked for and
	// verified: it is compared with the policy's once more, so that what was
	// checked is what is run.
	Digest string
	// Entrypoint to StopSignal are the members of the OCI image configuration.
	Entrypoint, Cmd, Env []string
	User, WorkingDir     string
	StopSignal           string
	// Passwd and Group are the contents of /etc/passwd and /etc/group of the
	// unpacked image, opened beneath its root; nil when there are none.
	Passwd, Group []byte
}
