package policy

import (
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// allowed are the builtins a policy may call: pure functions whose cost is
// bounded by their arguments' size. A function that a later OPA adds stays
// off until it is listed here. Left out on purpose: http.send, net.*,
// opa.runtime, time.now_ns and everything else that reads the clock,
// rand.intn, uuid.rfc4122, trace, numbers.range, bits.lsh and
// strings.render_template (output far larger than their input), regex.globs_match,
// regex.find_all_string_submatch_n.
var allowed = strings.Fields(`
	eq equal neq lt lte gt gte assign plus minus mul div rem and or
	abs ceil floor round
	count sum product max min sort all any
	array.concat array.reverse array.slice array.flatten
	object.get object.keys object.remove object.union object.union_n object.subset object.filter
	union intersection
	concat contains endswith startswith indexof indexof_n lower upper replace split sprintf substring
	trim trim_left trim_prefix trim_right trim_space trim_suffix strings.any_prefix_match strings.any_suffix_match
	strings.reverse strings.count strings.replace_n format_int to_number
	regex.match regex.is_valid regex.split regex.find_n regex.replace glob.match
	is_array is_boolean is_null is_number is_object is_set is_string type_name
	json.marshal json.unmarshal json.is_valid json.filter json.remove
	base64.encode base64.decode base64.is_valid base64url.encode base64url.encode_no_pad base64url.decode
	hex.encode hex.decode urlquery.decode urlquery.encode
	bits.and bits.or bits.xor bits.negate bits.rsh
	crypto.sha256 crypto.hmac.equal
	semver.compare semver.is_valid
	time.parse_rfc3339_ns time.parse_duration_ns
	internal.member_2 internal.member_3 internal.print internal.template_string print walk graph.reachable
	cast_array cast_set cast_string cast_boolean cast_null cast_object set_diff
`)

// capabilities is OPA's own list cut down to allowed; it is built anew
// because the compiler may add functions to it.
func capabilities() *ast.Capabilities {
	all := ast.CapabilitiesForThisVersion()
	c := &ast.Capabilities{
		Features:       all.Features,
		FutureKeywords: all.FutureKeywords,
		AllowNet:       []string{},
	}
	for _, b := range all.Builtins {
		if slices.Contains(allowed, b.Name) {
			c.Builtins = append(c.Builtins, b)
		}
	}
	return c
}
