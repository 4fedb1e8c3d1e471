// Package azureverify verifies evidence of Azure's confidential virtual
// machines with a virtual TPM, on AMD SEV-SNP ([NewSNP]) and on Intel TDX
// ([NewTDX]).
//
// The hardware report, which the verifiers of those platforms judge, is of the
// paravisor. It holds the SHA-256 of the paravisor's runtime claims; these name
// the TPM's attestation key, which signs the quote over the guest's registers
// and the handshake. All of that is checked; what the registers should be is for
// an appraisal policy to say.
//
// Only evidence of version 2 shows that the hardware report is fresh: its
// runtime claims have the digest of the handshake too. In older evidence a
// hardware report and an attestation key that leaked once could be used for
// ever. It is accepted with a warning, unless Options.RequireV2 is set.
//
// Verified against published evidence of Azure's machines, which is the only
// hardware this was ever run on.
//
// # Checks
//
// With the name of the environment, az-snp-vtpm or az-tdx-vtpm, in front:
// .format, .hcl_report (the paravisor's report is malformed, of another
// platform, or not the quoted one), .key, .signature, .quote, .pcr_selection,
// .pcr_digest (see tee/tpm/tpmverify), .report_data, .init_data, .var_data (the
// runtime claims are not those in the hardware report), .user_data, .version,
// and az-snp-vtpm.vmpl. Those of the hardware report are snp.* and tdx.*, as in
// tee/snp/snpverify and tee/tdx/tdxverify.
//
// # Binding
//
// The quote's nonce is the report data as it is, neither padded nor cut. Initdata
// is bound by register 8, which is SHA-256(32 zeros ‖ digest), so that its
// digest has to be SHA-256.
//
// # Claims
//
// As the confidential containers' attestation service names them: those of the
// hardware report; tpm.pcr00 to tpm.pcr23 (object "tpm"), init_data (register 8)
// and report_data (the nonce) in lower-case hex. On SNP every value of the
// hardware report is a string, "true" or "21" for example, except simulated;
// measurement is base64. On TDX they are as in tee/tdx/tdxverify.
//
// In addition: evidence_version, hcl_version (numbers), user_data (hex),
// vm_configuration (object, as the paravisor wrote it), hardware_report_data
// (hex), tpm_clock, tpm_reset_count, tpm_restart_count (numbers),
// tpm_firmware_version (hex), and hardware_report_fresh (boolean: version 2).
package azureverify
