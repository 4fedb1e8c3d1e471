# NVIDIA BlueField data processing units. The evidence proves a genuine device and
# tells nothing of its firmware.
package policy

import rego.v1

dpu := input["nvidia-dpu"]

affirmed := {"executables": 3, "hardware": 2, "configuration": 3} if dpu

findings contains finding if {
	dpu
	some finding in required(
		"nvidia-dpu", "executables", {"alias_cert_fwid": "nvidia_dpu_fwid"}, dpu,
		"the evidence does not tell the device's firmware, or tells one that nobody has registered",
	)
}

findings contains finding if {
	dpu
	some finding in pinned("nvidia-dpu", "hardware", {"architecture": "nvidia_dpu_architecture"}, dpu, firmware_help)
}
