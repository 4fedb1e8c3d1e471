# Coffer's resource policy where the operator has stored none: a resource is
# released to a guest whose every part is affirmed by the attestation policy
# "default", that is not simulated, and whose initdata digest the resource's
# owner has registered for it.
#
# It holds for stored resources and for what plugins serve alike: the path of
# the latter, as owners bind digests to it, is "+plugin/segment/...".
#
# input: the verified token's claims (EAR).
# data: plugin, resource-path, query and
#   coffer.registered_initdata       digests registered for this path, lower-case
#                                    hex, fitted to the evidence's field; at most
#                                    64, the evidence's own first
#   coffer.registered_description    the same for people
#   coffer.allow_simulated           the trustee's configuration
#   coffer.tenant                    whose resource it is
#
# "allow" decides; "deny" only explains: {priority, rule, claim, expected, got,
# help}, the lowest priority is shown first.
package policy

import rego.v1

default allow := false

allow if {
	input.submods.cpu0
	every submod in input.submods {
		by_default_policy(submod)
		acceptable(submod)
	}
	initdata_registered
}

# A guest may select among the attestation policies that the configuration
# offers. That is a wish: what another policy affirms means nothing here.
by_default_policy(submod) if submod["ear.appraisal-policy-id"] == "default"

evidence(submod) := submod["ear.veraison.annotated-evidence"]

vector(submod) := submod["ear.trustworthiness-vector"]

acceptable(submod) if {
	evidence(submod).simulated == false
	submod["ear.status"] == "affirming"
}

acceptable(submod) if simulation_tolerated(submod)

# Of a simulated environment exactly the hardware value that stands for the
# simulation is tolerated, and nothing else that is not affirming.
simulation_tolerated(submod) if {
	data.coffer.allow_simulated == true
	evidence(submod).simulated == true
	vector(submod).hardware == 32
	every component, value in vector(submod) {
		component_tolerated(component, value)
	}
}

component_tolerated("hardware", 32)

component_tolerated(component, value) if {
	component != "hardware"
	value >= -32
	value <= 31
}

own_initdata := evidence(input.submods.cpu0).init_data

initdata_empty if not own_initdata

initdata_empty if trim_left(own_initdata, "0") == ""

initdata_registered if {
	not initdata_empty
	own_initdata in data.coffer.registered_initdata
}

# --- reasons ------------------------------------------------------------------

path := concat("/", data["resource-path"]) if data.plugin == "resource"

path := concat("/", array.concat([concat("", ["+", data.plugin])], data["resource-path"])) if data.plugin != "resource"

deny contains {
	"priority": 10,
	"rule": "appraisal.submods",
	"claim": "submods",
	"expected": "an appraisal of cpu0",
	"got": "none",
	"help": "attest with a CPU environment as the primary one",
} if {
	not input.submods.cpu0
}

deny contains {
	"priority": 15,
	"rule": "appraisal.policy",
	"claim": sprintf("submods.%s.ear.appraisal-policy-id", [name]),
	"expected": "\"default\"",
	"got": sprintf("%q", [object.get(submod, "ear.appraisal-policy-id", "")]),
	"help": "the built-in resource policy relies on the attestation policy \"default\" alone: attest without a selector, or store a resource policy that says which others it trusts",
} if {
	some name, submod in input.submods
	not by_default_policy(submod)
}

deny contains object.union(
	{"priority": finding_priority(finding)},
	object.remove(finding, ["affects"]),
) if {
	some submod in input.submods
	not acceptable(submod)
	some finding in submod["ear.coffer.findings"]
	not excused(finding)
}

excused(finding) if {
	data.coffer.allow_simulated == true
	finding.rule == "evidence.simulated"
}

finding_priority(finding) := 20 if {
	finding.affects == "hardware"
} else := 30 if {
	finding.affects == "executables"
} else := 40

# A policy of the operator's may leave no findings: then the vector speaks.
deny contains {
	"priority": 45,
	"rule": "appraisal.status",
	"claim": sprintf("submods.%s.ear.status", [name]),
	"expected": "affirming",
	"got": sprintf("%v, trustworthiness vector %v", [submod["ear.status"], json.marshal(object.get(submod, "ear.trustworthiness-vector", {}))]),
	"help": "the attestation policy did not affirm the environment: see the trustee's verdict log for the claims",
} if {
	some name, submod in input.submods
	not acceptable(submod)
	count([f | some f in object.get(submod, "ear.coffer.findings", []); not excused(f)]) == 0
}

deny contains {
	"priority": 50,
	"rule": "initdata.sealed",
	"claim": "init_data",
	"expected": sprintf("an initdata digest registered for %s: %s", [path, data.coffer.registered_description]),
	"got": "no initdata: the environment was launched without any",
	"help": "an unsealed pod gets no secrets: launch it with initdata (`coffer run` without --unsealed)",
} if {
	initdata_empty
}

deny contains {
	"priority": 50,
	"rule": "initdata.registered",
	"claim": "init_data",
	"expected": sprintf("an initdata digest registered for %s: %s", [path, data.coffer.registered_description]),
	"got": own_initdata,
	"help": "the pod's initdata is not the one its owner registered for this resource; if it is meant, the owner registers its digest (`coffer trustee bind`)",
} if {
	not initdata_empty
	not initdata_registered
}
