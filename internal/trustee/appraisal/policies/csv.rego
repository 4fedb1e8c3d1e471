# Hygon CSV.
package policy

import rego.v1

affirmed := {"executables": 3, "hardware": 2, "configuration": 3} if input.csv

findings contains finding if {
	input.csv
	some finding in required("csv", "executables", {"measure": "csv_measure"}, input.csv, measured_help)
}

findings contains finding if {
	input.csv
	some finding in pinned("csv", "executables", {sprintf("rtmr%d", [i]): sprintf("csv_rtmr%d", [i]) | some i in [0, 1, 2, 3, 4]}, input.csv, measured_help)
}

findings contains finding if {
	input.csv
	some finding in pinned("csv", "hardware", {
		"policy/api_major": "csv_api_major",
		"policy/api_minor": "csv_api_minor",
		"serial_number": "csv_serial_number",
	}, input.csv, firmware_help)
}

findings contains {
	"affects": "configuration",
	"rule": "csv.policy",
	"claim": concat("/", ["policy", bit]),
	"expected": "set",
	"got": text(got),
	"help": "the guest's launch policy allows debugging or shares its keys with other guests: launch it with this bit",
} if {
	input.csv
	some bit in {"nodbg", "noks"}
	got := object.get(input.csv, ["policy", bit], null)
	not got in {true, 1, "1", "true"}
}

findings contains finding if {
	input.csv
	some finding in pinned("csv", "configuration", {
		"policy/es": "csv_policy_es",
		"policy/nosend": "csv_policy_nosend",
		"policy/domain": "csv_policy_domain",
		"policy/csv": "csv_policy_csv",
		"policy/csv3": "csv_policy_csv3",
		"vm_id": "csv_vm_id",
		"vm_version": "csv_vm_version",
	}, input.csv, launch_help)
}
