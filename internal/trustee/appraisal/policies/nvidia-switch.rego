# NVIDIA NVSwitch, judged by NVIDIA's attestation service.
package policy

import rego.v1

affirmed := {"executables": 3, "hardware": 2, "configuration": switch_configuration} if input.nvidia

default switch_configuration := 3

switch_configuration := 2 if matches("allowed_switch_bios_versions", input.nvidia["x-nvidia-switch-bios-version"])

findings contains finding if {
	input.nvidia
	some finding in pinned(
		"nvidia", "configuration", {"x-nvidia-switch-bios-version": "allowed_switch_bios_versions"}, input.nvidia,
		"the switch's firmware is not at a registered version: update it, or register the version",
	)
}

findings contains finding if {
	input.nvidia
	some finding in demanded("nvidia", "hardware", {
		"x-nvidia-switch-attestation-report-cert-chain/x-nvidia-cert-status": "valid",
		"x-nvidia-switch-attestation-report-cert-chain/x-nvidia-cert-ocsp-status": "good",
		"x-nvidia-switch-attestation-report-cert-chain-fwid-match": true,
		"x-nvidia-switch-attestation-report-signature-verified": true,
		"x-nvidia-switch-attestation-report-nonce-match": true,
	}, input.nvidia, "NVIDIA's service does not vouch for the switch: see what it says of its certificates")
}

findings contains finding if {
	input.nvidia
	some finding in demanded("nvidia", "executables", {
		"measres": "success",
		"x-nvidia-switch-bios-rim-signature-verified": true,
		"x-nvidia-switch-bios-rim-version-match": true,
	}, input.nvidia, "the switch's measurements are not those that NVIDIA has published for its firmware")
}

findings contains finding if {
	input.nvidia
	some finding in demanded("nvidia", "configuration", {"secboot": true, "dbgstat": "disabled"}, input.nvidia, "the switch is open to a debugger: run it in confidential mode")
}
