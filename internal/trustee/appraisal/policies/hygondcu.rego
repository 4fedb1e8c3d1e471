# Hygon DCU accelerators.
package policy

import rego.v1

affirmed := {"executables": 3, "hardware": 2, "configuration": 3} if input.hygondcu

findings contains finding if {
	input.hygondcu
	some finding in required("hygondcu", "executables", {"body/measure": "dcu_measure"}, input.hygondcu, measured_help)
}

findings contains finding if {
	input.hygondcu
	some finding in pinned("hygondcu", "hardware", {
		"body/chip_id": "dcu_chip_id",
		"body/version": "dcu_version",
	}, input.hygondcu, firmware_help)
}
