# Coffer's appraisal policy for CPU environments where the operator has stored
# none ("default_cpu"). The verifier has already checked signatures, chain,
# debug bit, minimum TCB and what the evidence is bound to; this policy compares
# claims with reference values.
#
# input: the annotated evidence. Functions besides Rego's own:
#   query_reference_value(id)        the unexpired values: list, scalar or null
#   reference_value_registered(id)   true where any value was ever registered
#   describe_reference_value(id)     the values as text, for findings
#
# Values are AR4SI codes. Components that are not affirming need a finding: it
# is what a refused guest and its owner get to read.
package policy

import rego.v1

default executables := 33

default hardware := 97

default configuration := 36

trust_claims := {
	"executables": executables,
	"hardware": hardware,
	"configuration": configuration,
}

# --- reference values ---------------------------------------------------

same(a, b) if a == b

same(a, b) if {
	is_string(a)
	is_string(b)
	lower(a) == lower(b)
}

matches(id, got) if {
	values := query_reference_value(id)
	is_array(values)
	some want in values
	same(want, got)
}

matches(id, got) if {
	value := query_reference_value(id)
	not is_array(value)
	not is_null(value)
	same(value, got)
}

# violated(pins): the claims that have a reference value and differ from it. A
# value that was registered and has expired still pins: nothing matches it.
violated(pins) := {claim |
	some claim, id in pins
	reference_value_registered(id)
	not matches(id, object.get(input.snp, claim, null))
}

# --- AMD SEV-SNP ----------------------------------------------------------

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

executables := 3 if matches("snp_launch_measurement", input.snp.measurement)

# 2: genuine and up to date. Simulated evidence is lowered to 32 by the program,
# whatever a policy says.
hardware := 2 if {
	input.snp
	count(violated(snp_hardware_pins)) == 0
}

configuration := 3 if {
	input.snp.policy_debug_allowed == false
	input.snp.policy_migrate_ma == false
	count(violated(snp_configuration_pins)) == 0
}

findings contains {
	"affects": "executables",
	"rule": "snp.launch-measurement",
	"claim": "measurement",
	"expected": sprintf("a value of the reference value snp_launch_measurement, which allows %s", [describe_reference_value("snp_launch_measurement")]),
	"got": object.get(input.snp, "measurement", "none"),
	"help": "the guest was not launched with the kernel, initrd, command line and CPUs that are registered; if this launch is meant, register its measurement (`coffer guest measure` predicts it)",
} if {
	input.snp
	executables != 3
}

findings contains {
	"affects": "hardware",
	"rule": concat("", ["snp.", snp_hardware_pins[claim]]),
	"claim": claim,
	"expected": sprintf("a value of the reference value %s, which allows %s", [snp_hardware_pins[claim], describe_reference_value(snp_hardware_pins[claim])]),
	"got": json.marshal(object.get(input.snp, claim, null)),
	"help": "the platform's firmware is not at a registered version: update it, or register the version",
} if {
	input.snp
	some claim in violated(snp_hardware_pins)
}

findings contains {
	"affects": "configuration",
	"rule": concat("", ["snp.", snp_configuration_pins[claim]]),
	"claim": claim,
	"expected": sprintf("the reference value %s, which allows %s", [snp_configuration_pins[claim], describe_reference_value(snp_configuration_pins[claim])]),
	"got": json.marshal(object.get(input.snp, claim, null)),
	"help": "launch the guest with the registered configuration",
} if {
	input.snp
	some claim in violated(snp_configuration_pins)
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

# --- sample -----------------------------------------------------------------
# Anyone can write sample evidence: no component is ever affirming.

findings contains {
	"affects": "hardware",
	"rule": "sample.never-affirming",
	"claim": "tee",
	"expected": "evidence of a TEE",
	"got": "sample",
	"help": "the sample TEE proves nothing and is for interoperability tests; a resource policy of the operator's own can accept it",
} if {
	input.sample
}

# --- everything else --------------------------------------------------------

findings contains {
	"affects": "hardware",
	"rule": "appraisal.no-policy",
	"claim": "tee",
	"expected": "snp",
	"got": concat(", ", known),
	"help": "the built-in policy judges no other environment: store an attestation policy default_cpu that does",
} if {
	known := {name | some name, _ in input} - {"report_data", "init_data", "runtime_data_claims", "init_data_claims", "simulated"}
	not input.snp
	not input.sample
}
