# What TDX and SGX share: Intel's judgement of the platform.
package policy

import rego.v1

# The platform's security level is what Intel's collateral says of it. The
# reference value tcb_status names the levels that are accepted where UpToDate
# alone is not the rule.
tcb_findings(tee, claims) := bad_status(tee, claims) | expired_collateral(tee, claims)

bad_status(tee, claims) := {{
	"affects": "hardware",
	"rule": concat("", [tee, ".tcb_status"]),
	"claim": "tcb_status",
	"expected": tcb_expected,
	"got": sprintf("%s, advisories %s", [text(claim_of(claims, "tcb_status")), json.marshal(object.get(claims, "advisory_ids", []))]),
	"help": "the platform's microcode or TDX module is behind Intel's advisories: update it, or accept the level by the reference value tcb_status",
} |
	not tcb_accepted(claims)
}

tcb_expected := sprintf("a value of the reference value tcb_status, which allows %s", [describe_reference_value("tcb_status")]) if {
	reference_value_registered("tcb_status")
} else := "UpToDate"

tcb_accepted(claims) if {
	not reference_value_registered("tcb_status")
	claims.tcb_status == "UpToDate"
}

tcb_accepted(claims) if matches("tcb_status", claims.tcb_status)

expired_collateral(tee, claims) := {finding |
	some finding in demanded(
		tee, "hardware", {"collateral_expiration_status": "0"}, claims,
		"the collateral that the platform was judged by has expired: let the trustee fetch it anew",
	)
}

debug_help := "a debugger can read the guest's memory: launch it without the debug attribute"
