# IBM Secure Execution.
package policy

import rego.v1

affirmed := {"executables": 3, "hardware": 2, "configuration": 2} if input.se

# The tag of the image's header is what the measurement of a launch is.
findings contains finding if {
	some finding in required("se", "executables", {"tag": "se_tag"}, input.se, measured_help)
}

findings contains finding if {
	input.se
	some finding in pinned("se", "hardware", {
		"attestation_phkh": "se_attestation_phkh",
		"image_phkh": "se_image_phkh",
		"cuid": "se_cuid",
	}, input.se, "the machine's host key is not a registered one: register it, or run the guest where it was meant to run")
}

findings contains finding if {
	input.se
	some finding in pinned("se", "configuration", {"version": "se_version"}, input.se, launch_help)
}
