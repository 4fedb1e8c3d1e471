# A TPM alone. Anyone can make an attestation key: which ones are a TPM's, the
# operator says.
package policy

import rego.v1

affirmed := {"executables": 3, "hardware": 2, "configuration": 3} if input.tpm

findings contains finding if {
	input.tpm
	some finding in required("tpm", "executables", tpm_software, input.tpm, measured_help)
}

# The registers that say what was booted: 11 for a unified kernel image; 4 (kernel)
# and 9 (command line, initrd) for a direct kernel boot, where both are registered
# and 11 is not.
default tpm_software := {"pcr11": "tpm_pcr11"}

tpm_software := {"pcr04": "tpm_pcr04", "pcr09": "tpm_pcr09"} if {
	not reference_value_registered("tpm_pcr11")
	reference_value_registered("tpm_pcr04")
	reference_value_registered("tpm_pcr09")
}

findings contains finding if {
	input.tpm
	some finding in required(
		"tpm", "hardware", {"ak_public": "trusted_aks"}, input.tpm,
		"the quote is by a key that nobody has vouched for: register the machine's attestation key",
	)
}

findings contains finding if {
	input.tpm
	some finding in pinned("tpm", "configuration", {sprintf("pcr%02d", [i]): sprintf("tpm_pcr%02d", [i]) |
		some i in [0, 1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 14, 15]
	}, input.tpm, launch_help)
}
