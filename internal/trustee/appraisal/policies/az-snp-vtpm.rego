# AMD SEV-SNP on Azure, behind a paravisor with a vTPM. The claims are those of
# SEV-SNP, but every value is a string.
package policy

import rego.v1

az_snp := input["az-snp-vtpm"]

affirmed := {"executables": 3, "hardware": 2, "configuration": 3} if az_snp

# The launch measurement is the paravisor's; what the guest booted is in the vTPM.
findings contains finding if {
	some finding in required("az-snp-vtpm", "executables", {
		"measurement": "measurement",
		"tpm/pcr11": "snp_pcr11",
	}, az_snp, measured_help)
}

findings contains finding if {
	az_snp
	some finding in pinned("az-snp-vtpm", "hardware", {
		"reported_tcb_bootloader": "tcb_bootloader",
		"reported_tcb_microcode": "tcb_microcode",
		"reported_tcb_snp": "tcb_snp",
		"reported_tcb_tee": "tcb_tee",
	}, az_snp, firmware_help)
}

findings contains finding if {
	az_snp
	some finding in pinned("az-snp-vtpm", "configuration", {
		"platform_smt_enabled": "smt_enabled",
		"platform_tsme_enabled": "tsme_enabled",
		"policy_abi_major": "abi_major",
		"policy_abi_minor": "abi_minor",
		"policy_single_socket": "single_socket",
		"policy_smt_allowed": "smt_allowed",
	}, az_snp, launch_help)
}

findings contains finding if {
	az_snp
	some finding in demanded("az-snp-vtpm", "configuration", {
		"policy_debug_allowed": false,
		"policy_migrate_ma": false,
	}, az_snp, "the guest's launch policy lets others than the guest read its memory: launch it without this bit")
}
