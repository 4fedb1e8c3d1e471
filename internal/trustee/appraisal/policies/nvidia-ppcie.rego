# Protected PCIe: eight GPUs and four switches that the verifier has found to be
# one machine. There is nothing to say of hardware and executables: the parts
# have their own appraisals.
package policy

import rego.v1

affirmed := {"executables": 0, "hardware": 0, "configuration": 2} if input.nvidia

findings contains finding if {
	input.nvidia
	some finding in demanded(
		"nvidia", "configuration", {"gpu_count": 8, "switch_count": 4}, input.nvidia,
		"the machine's devices are not all there: attest all of them in one handshake",
	)
}
