# An attestation policy for class cpu in place of the built-in one: SEV-SNP only,
# a known measurement, and firmware of a registered version or newer. The
# verifier has checked signature, chain, debug bit and what the evidence is
# bound to before.
package policy

import rego.v1

default hardware := 97

default executables := 33

trust_claims := {"hardware": hardware, "executables": executables, "configuration": 2}

# A scalar: `coffer trustee reference-value set snp_least_svn 23 --json --scalar`.
# It is null where nothing is registered or all has expired, and in Rego every
# number is greater than null: hence is_number.
hardware := 2 if {
	least := query_reference_value("snp_least_svn")
	is_number(least)
	input.snp.reported_tcb_snp >= least
}

# A list, or a scalar: reference_value_contains takes both.
executables := 3 if reference_value_contains("snp_launch_measurement", input.snp.measurement)

findings contains {
	"affects": "hardware",
	"rule": "snp.least-svn",
	"claim": "reported_tcb_snp",
	"expected": sprintf("at least %s", [describe_reference_value("snp_least_svn")]),
	"got": json.marshal(object.get(input, ["snp", "reported_tcb_snp"], null)),
	"help": "update the platform's firmware",
} if hardware != 2

findings contains {
	"affects": "executables",
	"rule": "snp.launch-measurement",
	"claim": "measurement",
	"expected": describe_reference_value("snp_launch_measurement"),
	"got": object.get(input, ["snp", "measurement"], "none"),
	"help": "register the measurement (`coffer guest measure --register`)",
} if executables != 3
