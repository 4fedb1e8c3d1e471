package cca

// Lifecycle is the state of a platform in its life (draft-ffm-rats-cca-token-00,
// claim cca-platform-lifecycle). The claim's upper byte is the state, its lower
// byte is the platform's own.
type Lifecycle uint8

// The states.
const (
	LifecycleInvalid          Lifecycle = iota // not one of the table
	LifecycleUnknown                           // 0x00xx
	LifecycleAssemblyAndTest                   // 0x10xx
	LifecycleProvisioning                      // 0x20xx: the root of trust gets its keys
	LifecycleSecured                           // 0x30xx
	LifecycleNonPlatformDebug                  // 0x40xx: what is not part of the CCA platform may be debugged
	LifecycleRecoverableDebug                  // 0x50xx: the CCA platform itself may be debugged
	LifecycleDecommissioned                    // 0x60xx
)

// LifecycleOf decodes the claim cca-platform-lifecycle.
func LifecycleOf(claim uint16) Lifecycle {
	switch claim >> 8 {
	case 0x00:
		return LifecycleUnknown
	case 0x10:
		return LifecycleAssemblyAndTest
	case 0x20:
		return LifecycleProvisioning
	case 0x30:
		return LifecycleSecured
	case 0x40:
		return LifecycleNonPlatformDebug
	case 0x50:
		return LifecycleRecoverableDebug
	case 0x60:
		return LifecycleDecommissioned
	}
	return LifecycleInvalid
}

// String returns the draft's name of the state.
func (l Lifecycle) String() string {
	switch l {
	case LifecycleUnknown:
		return "unknown"
	case LifecycleAssemblyAndTest:
		return "assembly_and_test"
	case LifecycleProvisioning:
		return "cca_platform_rot_provisioning"
	case LifecycleSecured:
		return "secured"
	case LifecycleNonPlatformDebug:
		return "non_cca_platform_rot_debug"
	case LifecycleRecoverableDebug:
		return "recoverable_cca_platform_rot_debug"
	case LifecycleDecommissioned:
		return "decommissioned"
	}
	return "invalid"
}
