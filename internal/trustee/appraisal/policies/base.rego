# What the built-in policies of all environments share. They are in force where
# a tenant has stored none for the class of environment ("default_cpu",
# "default_gpu", …). The verifier has already checked signatures, chains, debug
# bit, minimum TCB and what the evidence is bound to; these policies compare
# claims with reference values.
#
# input: the annotated evidence. Functions besides Rego's own:
#   query_reference_value(id)           the unexpired values: list, scalar or null
#   reference_value_contains(id, v)     true where v is among them (strings in either case)
#   reference_value_registered(id)      true where any value was ever registered
#   describe_reference_value(id)        the values as text, for findings
#
# Values are AR4SI codes. A component is affirming where its environment's file
# says so in `affirmed` and no finding affects it: what keeps a guest from its
# secrets is always something that it and its owner get to read.
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

executables := data.policy.affirmed.executables if not "executables" in blamed

hardware := data.policy.affirmed.hardware if not "hardware" in blamed

configuration := data.policy.affirmed.configuration if not "configuration" in blamed

blamed contains finding.affects if some finding in findings

# --- claims -----------------------------------------------------------------

# claim_of(claims, name): a claim by its name, or by its path with slashes.
claim_of(claims, name) := claims[name] if {
	true
} else := object.get(claims, split(name, "/"), null) if {
	contains(name, "/")
} else := null

text(v) := v if is_string(v)

text(v) := "none" if is_null(v)

text(v) := json.marshal(v) if {
	not is_string(v)
	not is_null(v)
}

# --- reference values -------------------------------------------------------

# A claim that is missing matches nothing.
matches(id, got) if {
	not is_null(got)
	reference_value_contains(id, got)
}

# Some verifiers write numbers and booleans as strings.
matches(id, got) if {
	is_string(got)
	regex.match(`^(0|[1-9][0-9]{0,9})$`, got)
	reference_value_contains(id, to_number(got))
}

matches(id, got) if {
	is_string(got)
	reference_value_contains(id, {"true": true, "false": false}[got])
}

# violated(pins, claims): the claims that have a reference value and differ from
# it. A value that was registered and has expired still pins: nothing matches it.
violated(pins, claims) := {claim |
	some claim, id in pins
	reference_value_registered(id)
	not matches(id, claim_of(claims, claim))
}

allows := {
	"executables": "a value of the reference value %s, which allows %s",
	"hardware": "a value of the reference value %s, which allows %s",
	"configuration": "the reference value %s, which allows %s",
}

# pinned(tee, affects, pins, claims, help): findings for claims that a reference
# value pins to something else.
pinned(tee, affects, pins, claims, help) := {finding |
	some claim in violated(pins, claims)
	finding := {
		"affects": affects,
		"rule": concat("", [tee, ".", pins[claim]]),
		"claim": claim,
		"expected": sprintf(allows[affects], [pins[claim], describe_reference_value(pins[claim])]),
		"got": json.marshal(claim_of(claims, claim)),
		"help": help,
	}
}

# required(tee, affects, needs, claims, help): findings for claims that no
# reference value knows, whether or not there is one.
required(tee, affects, needs, claims, help) := {finding |
	some claim, id in needs
	not matches(id, claim_of(claims, claim))
	finding := {
		"affects": affects,
		"rule": concat("", [tee, ".", id]),
		"claim": claim,
		"expected": sprintf(allows[affects], [id, describe_reference_value(id)]),
		"got": text(claim_of(claims, claim)),
		"help": help,
	}
}

# demanded(tee, affects, demands, claims, help): findings for claims that are not
# what they have to be whatever is registered.
demanded(tee, affects, demands, claims, help) := {finding |
	some claim, want in demands
	not is_wanted(want, claim_of(claims, claim))
	finding := {
		"affects": affects,
		"rule": sprintf("%s.%s", [tee, replace(claim, "/", ".")]),
		"claim": claim,
		"expected": text(want),
		"got": text(claim_of(claims, claim)),
		"help": help,
	}
}

is_wanted(want, got) if want == got

is_wanted(want, got) if lower(text(got)) == lower(text(want))

firmware_help := "the platform's firmware is not at a registered version: update it, or register the version"

launch_help := "launch the guest with the registered configuration"

measured_help := "what was measured is not what is registered; if it is what is meant, register its measurement (`coffer guest measure` predicts it)"

# --- everything else --------------------------------------------------------

judged if data.policy.affirmed

known := {name | some name, _ in input} - {"report_data", "init_data", "runtime_data_claims", "init_data_claims", "simulated"}

findings contains {
	"affects": "hardware",
	"rule": "appraisal.no-policy",
	"claim": "tee",
	"expected": "an environment with a built-in policy",
	"got": concat(", ", known),
	"help": "the built-in policy judges no other environment: store an attestation policy of your own for this class that does",
} if not judged
