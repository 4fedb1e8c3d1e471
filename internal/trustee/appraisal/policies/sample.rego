# The sample TEE. Anyone can write its evidence: no component is ever affirming.
package policy

import rego.v1

judged if input.sample

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
