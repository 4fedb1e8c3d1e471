package podpolicy

// SandboxProposal is what the host says about the pod. Empty names leave the
// value to the policy.
type SandboxProposal struct {
	// ID is 1 to 64 characters of [a-zA-Z0-9._-].
	ID           string
	PodName      string
	PodNamespace string
	PodUID       string
	Hostname     string
	NodeName     string
	Network      NetworkProposal
	// Sysctls: empty leaves them to the policy, else they are all of them.
	Sysctls  map[string]string
	SharePID bool
}

// NetworkProposal is what the host says about the network.
type NetworkProposal struct {
	Interfaces []Interface
	Routes     []Route
	Neighbours []Neighbour
	DNS        DNSProposal
	Hosts      []HostEntry
}

// Interface configures the device with the hardware address MAC.
type Interface struct {
	// MAC is six hexadecimal octets with colons.
	MAC  string
	Name string
	// Addresses in CIDR notation.
	Addresses []string
	// MTU in bytes; 0 leaves the device's.
	MTU uint32
}

// Route is one route; an empty destination is the default route.
type Route struct {
	// Destination in CIDR notation.
	Destination string
	Gateway     string
	Interface   string
}

// Neighbour is a permanent entry of the neighbour table.
type Neighbour struct {
	Address, MAC, Interface string
}

// DNSProposal is a resolver's configuration.
type DNSProposal struct {
	Servers, Searches, Options []string
}

// ContainerProposal asks for one container of the policy. Nil lists and
// pointers, zero resources and an empty image leave the value to the policy.
type ContainerProposal struct {
	// ID is 1 to 64 characters of [a-zA-Z0-9._-], and of no other container
	// that has not been deleted.
	ID string
	// Name selects the container of the policy.
	Name string
	// Image reference as the host knows it.
	Image string
	Args  *[]string
	// Env holds KEY=VALUE; when it is given, it is the whole environment.
	Env  *[]string
	User *User
	Cwd  *string
	// Mounts, when there are any, are all of them.
	Mounts    []Mount
	Terminal  bool
	Stdin     bool
	Resources Resources
	// Slots are values by slot type. Those of slots that the container does
	// not use are checked and dropped.
	Slots map[string]string
	// Security is what the host knows of the container's rights; nil: it claims
	// nothing.
	Security *Security
	// Volumes are the volumes that mounts and devices name; those that are left
	// out are as they were, or the policy's.
	Volumes []VolumeClaim
	// Devices, when there are any, are all of them.
	Devices []Device
	// TerminationPath is where the container leaves its last words; empty:
	// nowhere.
	TerminationPath string
	// JoinPIDs asks for the processes of another container, without a name.
	JoinPIDs bool
}

// Resources are limits; a zero field leaves the limit to the policy, or in an
// update as it is.
type Resources struct {
	MemoryBytes uint64
	CPUMillis   uint32
	PIDs        uint32
}

// ExecProposal asks to run a command in a running container.
type ExecProposal struct {
	// ID is 1 to 64 characters of [a-zA-Z0-9._-].
	ID   string
	Args []string
	// Env and Cwd, when they are given, must be the container's.
	Env      *[]string
	Cwd      *string
	Terminal bool
	Stdin    bool
}
