# NVIDIA GPUs, judged by the trustee itself or by NVIDIA's attestation service.
package policy

import rego.v1

# 2: approved firmware and driver; 3: nothing is known against them.
affirmed := {"executables": 3, "hardware": 2, "configuration": nvidia_configuration} if input.nvidia

default nvidia_configuration := 3

nvidia_configuration := 2 if {
	count(required("nvidia", "configuration", nvidia_versions, input.nvidia, "")) == 0
}

# NVIDIA's service writes EAT claims; the trustee's own verifier lists what was
# measured, and makes the same claims of what it has checked.
local if is_object(input.nvidia.measurements)

remote if {
	not local
	input.nvidia["x-nvidia-gpu-attestation-report-cert-chain"]
}

remote if {
	not local
	input.nvidia.measres
}

# The measurements were compared with NVIDIA's published ones, by either.
compared if remote

compared if input.nvidia.measres

nvidia_versions := {
	"x-nvidia-gpu-vbios-version": "allowed_vbios_versions",
	"x-nvidia-gpu-driver-version": "allowed_driver_versions",
} if {
	remote
} else := {
	"config/vbios_version": "allowed_vbios_versions",
	"config/driver_version": "allowed_driver_versions",
}

findings contains finding if {
	input.nvidia
	some finding in pinned(
		"nvidia", "configuration", nvidia_versions, input.nvidia,
		"the device's firmware or driver is not at a registered version: update it, or register the version",
	)
}

# --- by NVIDIA's service ----------------------------------------------------

findings contains finding if {
	remote
	some finding in demanded("nvidia", "hardware", {
		"x-nvidia-gpu-attestation-report-cert-chain/x-nvidia-cert-status": "valid",
		"x-nvidia-gpu-attestation-report-cert-chain/x-nvidia-cert-ocsp-status": "good",
		"x-nvidia-gpu-attestation-report-cert-chain-fwid-match": true,
		"x-nvidia-gpu-attestation-report-signature-verified": true,
		"x-nvidia-gpu-attestation-report-nonce-match": true,
	}, input.nvidia, "NVIDIA's service does not vouch for the device: see what it says of its certificates")
}

findings contains finding if {
	compared
	some finding in demanded("nvidia", "executables", {
		"measres": "success",
		"x-nvidia-gpu-driver-rim-signature-verified": true,
		"x-nvidia-gpu-driver-rim-version-match": true,
		"x-nvidia-gpu-vbios-rim-signature-verified": true,
		"x-nvidia-gpu-vbios-rim-version-match": true,
	}, input.nvidia, "the device's measurements are not those that NVIDIA has published for its driver and firmware")
}

findings contains finding if {
	remote
	some finding in demanded("nvidia", "configuration", {"secboot": true, "dbgstat": "disabled"}, input.nvidia, "the device is open to a debugger: run it in confidential mode, without developer tools")
}

# --- by the trustee ---------------------------------------------------------
# Signature, chain and firmware identity were checked by the verifier. Revocation
# and firmware identity have claims only where they could be checked. Where the
# verifier has not compared the measurements with NVIDIA's published ones, the
# operator registers those of a device that is known to be good.

findings contains finding if {
	local
	checked := {claim: want |
		some claim, want in {
			"x-nvidia-gpu-attestation-report-cert-chain/x-nvidia-cert-status": "valid",
			"x-nvidia-gpu-attestation-report-cert-chain/x-nvidia-cert-ocsp-status": "good",
			"x-nvidia-gpu-attestation-report-cert-chain-fwid-match": true,
			"x-nvidia-gpu-attestation-report-signature-verified": true,
			"x-nvidia-gpu-attestation-report-nonce-match": true,
		}
		not is_null(claim_of(input.nvidia, claim))
	}
	some finding in demanded("nvidia", "hardware", checked, input.nvidia, "the device's certificates or its report are not in order")
}

findings contains finding if {
	input.nvidia
	not remote
	pins := {concat("/", ["measurements", i]): concat("", ["nvidia_gpu_measurement_", i]) | some i, _ in input.nvidia.measurements}
	some finding in pinned("nvidia", "executables", pins, input.nvidia, measured_help)
}

findings contains {
	"affects": "executables",
	"rule": "nvidia.measurements",
	"claim": "measurements",
	"expected": "reference values nvidia_gpu_measurement_1, nvidia_gpu_measurement_2, …, one for each measurement that matters",
	"got": "none is registered",
	"help": "nothing says which firmware and driver are good: register measurements, or let the trustee compare them with NVIDIA's manifests",
} if {
	input.nvidia
	not compared
	not nvidia_registered
}

nvidia_registered if {
	some i, _ in input.nvidia.measurements
	reference_value_registered(concat("", ["nvidia_gpu_measurement_", i]))
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
