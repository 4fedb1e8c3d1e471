# Intel TDX.
package policy

import rego.v1

affirmed := {"executables": 3, "hardware": 2, "configuration": 3} if input.tdx

findings contains finding if {
	input.tdx
	some finding in required("tdx", "executables", {
		"quote/body/mr_td": "mr_td",
		"quote/body/rtmr_1": "rtmr_1",
		"quote/body/rtmr_2": "rtmr_2",
	}, input.tdx, measured_help)
}

# A kernel or a command line can be pinned beside the registers. The verifier has
# replayed the event log against them, so its digests are as good as they are.
findings contains {
	"affects": "executables",
	"rule": concat("", ["tdx.", id]),
	"claim": "uefi_event_logs",
	"expected": sprintf("an event with a digest of the reference value %s, which allows %s", [id, describe_reference_value(id)]),
	"got": sprintf("%d events without it", [count(object.get(input.tdx, "uefi_event_logs", []))]),
	"help": "the event log shows another kernel or command line: launch the registered one, and have the guest send its event log",
} if {
	input.tdx
	some id in {"tdvfkernel", "tdvfkernelparams"}
	reference_value_registered(id)
	not measured(id)
}

measured(id) if {
	some event in input.tdx.uefi_event_logs
	some digest in event.digests
	matches(id, digest.digest)
}

findings contains finding if {
	input.tdx
	some finding in tcb_findings("tdx", input.tdx)
}

findings contains finding if {
	input.tdx
	some finding in demanded("tdx", "hardware", {
		"quote/header/tee_type": "81000000",
		"quote/header/vendor_id": "939a7233f79c4ca9940a0db3957f0607",
	}, input.tdx, "this is no quote of a TDX guest by Intel's quoting enclave")
}

findings contains finding if {
	input.tdx
	some finding in pinned("tdx", "hardware", {
		"quote/body/mr_seam": "mr_seam",
		"quote/body/tcb_svn": "tcb_svn",
	}, input.tdx, firmware_help)
}

findings contains finding if {
	input.tdx
	some finding in demanded("tdx", "configuration", {"td_attributes/debug": false}, input.tdx, debug_help)
}

findings contains finding if {
	input.tdx
	some finding in pinned("tdx", "configuration", {
		"quote/body/xfam": "xfam",
		"quote/body/mr_owner": "mr_owner",
		"quote/body/mr_owner_config": "mr_owner_config",
		"quote/body/rtmr_0": "rtmr_0",
		"quote/body/rtmr_3": "rtmr_3",
	}, input.tdx, launch_help)
}

# A TD that may be migrated keeps its secrets as long as the migration TD that is
# bound to it does. Which one that is, the operator says.
findings contains finding if {
	object.get(input.tdx, ["td_attributes", "migratable"], false) != false
	some finding in required(
		"tdx", "configuration", {"quote/body/mr_servicetd": "mr_servicetd"}, input.tdx,
		"a migration TD can move this guest's memory elsewhere: launch the guest without migration, or register the migration TD's measurement",
	)
}
