# AMD SEV-SNP.
package policy

import rego.v1

# 2: genuine and up to date. Simulated evidence is lowered to 32 by the program,
# whatever a policy says.
affirmed := {"executables": 3, "hardware": 2, "configuration": 3} if input.snp

snp_hardware_pins := {
	"reported_tcb_bootloader": "snp_bootloader",
	"reported_tcb_microcode": "snp_microcode",
	"reported_tcb_snp": "snp_snp_svn",
	"reported_tcb_tee": "snp_tee_svn",
}

snp_configuration_pins := {
	"platform_smt_enabled": "snp_smt_enabled",
	"platform_tsme_enabled": "snp_tsme_enabled",
	"policy_abi_major": "snp_guest_abi_major",
	"policy_abi_minor": "snp_guest_abi_minor",
	"policy_single_socket": "snp_single_socket",
	"policy_smt_allowed": "snp_smt_allowed",
}

findings contains {
	"affects": "executables",
	"rule": "snp.launch-measurement",
	"claim": "measurement",
	"expected": sprintf("a value of the reference value snp_launch_measurement, which allows %s", [describe_reference_value("snp_launch_measurement")]),
	"got": text(object.get(input.snp, "measurement", null)),
	"help": "the guest was not launched with the kernel, initrd, command line and CPUs that are registered; if this launch is meant, register its measurement (`coffer guest measure` predicts it)",
} if {
	input.snp
	not matches("snp_launch_measurement", object.get(input.snp, "measurement", null))
}

findings contains finding if {
	input.snp
	some finding in pinned("snp", "hardware", snp_hardware_pins, input.snp, firmware_help)
}

findings contains finding if {
	input.snp
	some finding in pinned("snp", "configuration", snp_configuration_pins, input.snp, launch_help)
}

findings contains {
	"affects": "configuration",
	"rule": "snp.policy",
	"claim": claim,
	"expected": "false",
	"got": json.marshal(object.get(input.snp, claim, null)),
	"help": "the guest's launch policy lets others than the guest read its memory: launch it without this bit",
} if {
	input.snp
	some claim in {"policy_debug_allowed", "policy_migrate_ma"}
	object.get(input.snp, claim, null) != false
}
