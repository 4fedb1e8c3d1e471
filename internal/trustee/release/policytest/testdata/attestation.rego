package policy

import rego.v1

default executables := 33

executables := 3 if reference_value_contains("snp_launch_measurement", input.snp.measurement)

trust_claims := {"hardware": 2, "executables": executables, "configuration": 2}

findings contains {
	"affects": "executables",
	"rule": "snp.launch-measurement",
	"claim": "measurement",
	"expected": describe_reference_value("snp_launch_measurement"),
	"got": input.snp.measurement,
} if {
	reference_value_registered("snp_launch_measurement")
	not input.snp.measurement in query_reference_value("snp_launch_measurement")
}

extensions contains {"name": "never"} if {
	query_reference_value("nothing") == "x"
	input.never
}
