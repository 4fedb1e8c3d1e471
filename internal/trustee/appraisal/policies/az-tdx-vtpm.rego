# Intel TDX on Azure, behind a paravisor with a vTPM.
package policy

import rego.v1

az_tdx := input["az-tdx-vtpm"]

affirmed := {"executables": 3, "hardware": 2, "configuration": 3} if az_tdx

# The TD is the paravisor; what the guest booted is in the vTPM.
findings contains finding if {
	some finding in required("az-tdx-vtpm", "executables", {
		"quote/body/mr_td": "mr_td",
		"tpm/pcr11": "tdx_pcr11",
	}, az_tdx, measured_help)
}

findings contains finding if {
	az_tdx
	some finding in tcb_findings("az-tdx-vtpm", az_tdx)
}

findings contains finding if {
	az_tdx
	some finding in demanded("az-tdx-vtpm", "configuration", {"td_attributes/debug": false}, az_tdx, debug_help)
}

findings contains finding if {
	az_tdx
	some finding in pinned("az-tdx-vtpm", "configuration", {"quote/body/xfam": "xfam"}, az_tdx, launch_help)
}
