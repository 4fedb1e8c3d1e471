# The sample device. Anyone can write its evidence: no component is ever affirming.
package policy

import rego.v1

judged if input.sampledevice

findings contains {
	"affects": "hardware",
	"rule": "sampledevice.never-affirming",
	"claim": "tee",
	"expected": "evidence of a device",
	"got": "sampledevice",
	"help": "the sample device proves nothing and is for interoperability tests; a resource policy of the operator's own can accept it",
} if {
	input.sampledevice
}
