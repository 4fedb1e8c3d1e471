# Arm CCA.
package policy

import rego.v1

affirmed := {"executables": 3, "hardware": 2, "configuration": 3} if input.cca

findings contains finding if {
	input.cca
	some finding in required("cca", "executables", {"realm/cca-realm-initial-measurement": "cca_realm_initial_measurement"}, input.cca, measured_help)
}

# Extensible measurements are pinned one by one, and only where registered.
findings contains finding if {
	realm := {sprintf("extensible-measurement-%d", [i]): value | some i, value in input.cca.realm["cca-realm-extensible-measurements"]}
	pins := {sprintf("extensible-measurement-%d", [i]): sprintf("cca_realm_extensible_measurement_%d", [i]) | some i in [0, 1, 2, 3]}
	some finding in pinned("cca", "executables", pins, realm, measured_help)
}

# 0x3000 to 0x30ff is the lifecycle "secured" of the CCA platform token
# (draft-ffm-rats-cca-token, platform lifecycle).
findings contains {
	"affects": "hardware",
	"rule": "cca.lifecycle",
	"claim": "platform/cca-platform-lifecycle",
	"expected": "secured: 12288 to 12543",
	"got": text(lifecycle),
	"help": "the platform is not locked down for production: its debug ports or its keys are open",
} if {
	input.cca
	lifecycle := object.get(input.cca, ["platform", "cca-platform-lifecycle"], null)
	not cca_secured(lifecycle)
}

cca_secured(lifecycle) if {
	is_number(lifecycle)
	lifecycle >= 12288
	lifecycle <= 12543
}

findings contains finding if {
	input.cca
	some finding in pinned("cca", "hardware", {
		"platform/cca-platform-implementation-id": "cca_platform_implementation_id",
		"platform/cca-platform-instance-id": "cca_platform_instance_id",
	}, input.cca, firmware_help)
}

# Once one component of the platform's firmware is registered, all have to be.
findings contains {
	"affects": "hardware",
	"rule": "cca.cca_platform_sw_components",
	"claim": sprintf("platform/cca-platform-sw-components/%d", [i]),
	"expected": sprintf("a measurement-value of the reference value cca_platform_sw_components, which allows %s", [describe_reference_value("cca_platform_sw_components")]),
	"got": json.marshal(component),
	"help": firmware_help,
} if {
	reference_value_registered("cca_platform_sw_components")
	some i, component in input.cca.platform["cca-platform-sw-components"]
	not matches("cca_platform_sw_components", object.get(component, "measurement-value", null))
}

findings contains finding if {
	input.cca
	some finding in pinned("cca", "configuration", {"platform/cca-platform-config": "cca_platform_config"}, input.cca, launch_help)
}
