package podpolicy

// Bounds on policies and proposals. Those that a slot type has of its own stand
// with its check.
const (
	maxContainers   = 64
	maxVolumes      = 128
	maxMounts       = 64
	maxFrom         = 16
	maxArgs         = 1024
	maxArgsBytes    = 128 << 10
	maxEnv          = 1024
	maxEnvBytes     = 256 << 10
	maxGroups       = 256
	maxExecRules    = 64
	maxExecs        = 32
	maxPorts        = 64
	maxServices     = 256
	maxSysctls      = 64
	maxSlots        = 16
	maxFiles        = 1024
	maxFileName     = 512
	maxFileDepth    = 8
	maxDevices      = 64
	maxCopyPaths    = 64
	maxReferences   = 64
	maxFilesBytes   = 64 << 20
	maxPath         = 1024
	maxInterfaces   = 16
	maxAddresses    = 16
	maxRoutes       = 256
	maxNeighbours   = 256
	maxDNSServers   = 3
	maxDNSSearches  = 32
	maxDNSOptions   = 16
	maxHosts        = 256
	maxHostNames    = 16
	maxImageRef     = 512
	maxInstances    = 16
	maxPasswdBytes  = 1 << 20
	defaultFileMode = "0644"
)
