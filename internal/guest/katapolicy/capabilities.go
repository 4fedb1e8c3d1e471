//go:build kata_policy

package katapolicy

import (
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// allowed are the builtins that a policy may call: pure functions whose result
// is not much larger than their arguments. What a later OPA adds stays off until
// it is listed here. Network, clock, randomness and environment are left out.
const allowed = `
	eq equal neq lt lte gt gte assign plus minus mul div rem and or abs ceil floor round
	count sum max min sort all any array.concat array.reverse array.slice
	object.get object.keys object.remove object.union object.subset object.filter union intersection
	concat contains endswith startswith indexof indexof_n lower upper replace split sprintf substring
	trim trim_left trim_prefix trim_right trim_space trim_suffix strings.any_prefix_match strings.any_suffix_match strings.count
	format_int to_number regex.match regex.is_valid regex.split regex.find_n regex.find_all_string_submatch_n regex.replace re_match glob.match
	is_array is_boolean is_null is_number is_object is_set is_string type_name
	json.marshal json.unmarshal json.is_valid json.filter json.remove
	base64.encode base64.decode base64.is_valid base64url.encode base64url.decode hex.encode hex.decode
	bits.and bits.or bits.xor bits.negate crypto.sha256 semver.compare semver.is_valid
	internal.member_2 internal.member_3 internal.print internal.template_string print walk
	cast_array cast_set cast_string cast_boolean cast_null cast_object set_diff`

func capabilities() *ast.Capabilities {
	names := strings.Fields(allowed)
	all := ast.CapabilitiesForThisVersion()
	c := &ast.Capabilities{Features: all.Features, FutureKeywords: all.FutureKeywords, AllowNet: []string{}}
	for _, b := range all.Builtins {
		if slices.Contains(names, b.Name) {
			c.Builtins = append(c.Builtins, b)
		}
	}
	return c
}
