# Intel SGX.
package policy

import rego.v1

affirmed := {"executables": 3, "hardware": 2, "configuration": 3} if input.sgx

# An enclave is known by its measurement, or by its signer, product and security
# version together.
findings contains finding if {
	not sgx_signed
	some finding in required("sgx", "executables", {"body/mr_enclave": "sgx_mr_enclave"}, input.sgx, measured_help)
}

sgx_signed if {
	count(required("sgx", "executables", {
		"body/mr_signer": "sgx_mr_signer",
		"body/isv_prod_id": "sgx_isv_prod_id",
		"body/isv_svn": "sgx_isv_svn",
	}, input.sgx, "")) == 0
}

findings contains finding if {
	input.sgx
	some finding in tcb_findings("sgx", input.sgx)
}

# The debug attribute is bit 1 of the first byte; the claim is in hexadecimal, the
# lowest byte first.
findings contains {
	"affects": "configuration",
	"rule": "sgx.debug",
	"claim": "body/attributes.flags",
	"expected": "an enclave without the debug attribute",
	"got": text(flags),
	"help": debug_help,
} if {
	input.sgx
	flags := object.get(input.sgx, ["body", "attributes.flags"], null)
	not sgx_production(flags)
}

sgx_production(flags) if {
	is_string(flags)
	regex.match(`^[0-9a-fA-F][014589cdCD]([0-9a-fA-F]{2}){7}$`, flags)
}

findings contains finding if {
	input.sgx
	some finding in pinned("sgx", "configuration", {
		"body/attributes.xfrm": "sgx_xfrm",
		"body/config_svn": "sgx_config_svn",
		"body/isv_ext_prod_id": "sgx_isv_ext_prod_id",
		"body/isv_family_id": "sgx_isv_family_id",
	}, input.sgx, launch_help)
}
