# NVIDIA NVSwitch, judged by the trustee itself, which lists what was measured, or by
# NVIDIA's attestation service.
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

local if is_object(input.nvidia.measurements)

compared if {
	input.nvidia
	not local
}

compared if input.nvidia.measres

vouched := {
	"x-nvidia-switch-attestation-report-cert-chain/x-nvidia-cert-status": "valid",
	"x-nvidia-switch-attestation-report-cert-chain/x-nvidia-cert-ocsp-status": "good",
	"x-nvidia-switch-attestation-report-cert-chain-fwid-match": true,
	"x-nvidia-switch-attestation-report-signature-verified": true,
	"x-nvidia-switch-attestation-report-nonce-match": true,
}

findings contains finding if {
	input.nvidia
	not local
	some finding in demanded("nvidia", "hardware", vouched, input.nvidia, "NVIDIA's service does not vouch for the switch: see what it says of its certificates")
}

# Revocation has a claim only where it was checked; the reports of switches have no
# firmware identity.
findings contains finding if {
	local
	checked := {claim: want |
		some claim, want in vouched
		not is_null(claim_of(input.nvidia, claim))
	}
	some finding in demanded("nvidia", "hardware", checked, input.nvidia, "the switch's certificates or its report are not in order")
}

findings contains finding if {
	local
	pins := {concat("/", ["measurements", i]): concat("", ["nvidia_switch_measurement_", i]) | some i, _ in input.nvidia.measurements}
	some finding in pinned("nvidia", "executables", pins, input.nvidia, measured_help)
}

findings contains {
	"affects": "executables",
	"rule": "nvidia.measurements",
	"claim": "measurements",
	"expected": "reference values nvidia_switch_measurement_1, nvidia_switch_measurement_2, …, one for each measurement that matters",
	"got": "none is registered",
	"help": "nothing says which firmware is good: register measurements, or let the trustee compare them with NVIDIA's manifests",
} if {
	local
	not compared
	not switch_registered
}

switch_registered if {
	some i, _ in input.nvidia.measurements
	reference_value_registered(concat("", ["nvidia_switch_measurement_", i]))
}

findings contains finding if {
	compared
	some finding in demanded("nvidia", "executables", {
		"measres": "success",
		"x-nvidia-switch-bios-rim-signature-verified": true,
		"x-nvidia-switch-bios-rim-version-match": true,
	}, input.nvidia, "the switch's measurements are not those that NVIDIA has published for its firmware")
}

findings contains finding if {
	input.nvidia
	not local
	some finding in demanded("nvidia", "configuration", {"secboot": true, "dbgstat": "disabled"}, input.nvidia, "the switch is open to a debugger: run it in confidential mode")
}

# The verifier may have been told to go on with collateral past its date.
findings contains finding if {
	local
	not is_null(claim_of(input.nvidia, "collateral_expiration_status"))
	some finding in demanded(
		"nvidia", "hardware", {"collateral_expiration_status": "0"}, input.nvidia,
		"NVIDIA's word on certificates or measurements has expired: have it fetched anew",
	)
}
