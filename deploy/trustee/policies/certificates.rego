# A resource policy for kbs+pki:///issue/web: the pods that are bound to the role
# get certificates, and only for the name of the shop. The role's own list of
# names in the configuration holds as well.
package policy

import rego.v1

default allow := false

allow if {
	input.submods.cpu0["ear.appraisal-policy-id"] == "default"
	input.submods.cpu0["ear.status"] == "affirming"
	own := input.submods.cpu0["ear.veraison.annotated-evidence"].init_data
	trim_left(own, "0") != ""
	own in data.coffer.registered_initdata
	data.query.dns == "shop.example"

	# A certificate request could name others: names have to stand in the query.
	not data.query.uri
}

deny contains {
	"rule": "certificates.web",
	"claim": "query.dns",
	"expected": "shop.example, for a pod that is bound to +pki/issue/web",
	"got": object.get(data.query, "dns", "none"),
	"help": "ask with ?dns=shop.example",
} if not allow
