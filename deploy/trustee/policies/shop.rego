# A resource policy for kbs:///shop: what lies under shop/config goes to every
# pod whose hardware, guest and configuration are affirmed; everything else only
# to pods whose initdata is bound to it.
package policy

import rego.v1

default allow := false

allow if {
	affirmed
	public
}

allow if {
	affirmed
	bound
}

# "default" is the attestation policy's name: what others affirm does not count.
affirmed if {
	input.submods.cpu0
	every submod in input.submods {
		submod["ear.appraisal-policy-id"] == "default"
		submod["ear.status"] == "affirming"
		submod["ear.veraison.annotated-evidence"].simulated == false
	}
}

public if data["resource-path"][1] == "config"

bound if {
	own := input.submods.cpu0["ear.veraison.annotated-evidence"].init_data
	trim_left(own, "0") != ""
	own in data.coffer.registered_initdata
}

deny contains {
	"priority": 10,
	"rule": "shop.affirmed",
	"claim": "submods",
	"expected": "an affirming appraisal of real hardware by the policy default",
	"got": json.marshal({name: object.get(submod, "ear.status", null) | some name, submod in input.submods}),
	"help": "see the attestation record's findings",
} if not affirmed

deny contains {
	"priority": 20,
	"rule": "shop.bound",
	"claim": "init_data",
	"expected": data.coffer.registered_description,
	"got": object.get(input.submods, ["cpu0", "ear.veraison.annotated-evidence", "init_data"], "none"),
	"help": "the owner binds the pod's initdata to the secret",
} if {
	not public
	not bound
}
