// Package snpverify verifies evidence of AMD SEV-SNP: reports of version 2 to
// 5, of Milan, Genoa (with Siena and Bergamo) and Turin chips, signed with a
// chip's own key (VCEK) or a cloud provider's (VLEK).
//
// It checks everything that is not a matter of opinion: the report's
// signature, the chain from the key's certificate to AMD's root, that the
// certificate is for the reported patch levels and for this chip, that the
// report was asked for at VMPL 0 by a guest that can neither be debugged nor
// migrated, and the binding to report data and initdata. [Options] say what
// else the operator demands. Which launch measurements are good is for an
// appraisal policy to say; it judges the claims.
//
// AMD's certificates are embedded and pinned by digest; the ASK and ARK that a
// host attaches are never used, only compared with those that are known. The
// verifier itself fetches nothing: what evidence lacks comes from a
// [Collateral].
//
// Tested with published evidence of Milan chips (version 2, and 3 with a VLEK),
// Genoa chips (versions 3 and 5) and a Turin chip (version 5). No published
// report of version 4, or with an ID block, was at hand: those are tested with
// evidence that the tests sign themselves.
//
// # Checks
//
// A [tee.Failure] names one of:
//
//	snp.format       no report of version 2 to 5, or bits that are not defined
//	snp.signer       signed with neither VCEK nor VLEK
//	snp.generation   a processor generation that is not known
//	snp.certificate  the VCEK or VLEK is not as AMD issues them
//	snp.chain        the chain does not end in a known root, or not at this time;
//	                 or there is no certificate, which is never tolerated
//	snp.signature    the key did not sign the report
//	snp.tcb          the certificate is for other patch levels than reported_tcb
//	snp.chip_id      the certificate is another chip's
//	snp.minimum_tcb  reported, committed or launch TCB below Options.MinimumTCB
//	snp.firmware     firmware below Options.MinimumFirmware
//	snp.mitigation   a bit of Options.RequireMitigations is missing
//	snp.vmpl         asked for at another privilege level than Options.VMPL
//	snp.debug        the host may read the guest's memory
//	snp.migration    a migration agent is, or may be, attached
//	snp.policy       Options.RequirePolicy or ForbidPolicy
//	snp.platform     Options.RequirePlatform or ForbidPlatform
//	snp.id_block     Options.IDBlock
//	snp.report_data  bound to other report data
//	snp.host_data    launched with other initdata
//	snp.revocation   AMD has revoked the intermediate
//	snp.collateral   the revocation list is missing, not AMD's, or out of date
//
// # Claims
//
// As the confidential containers' attestation service names them:
// policy_abi_major, policy_abi_minor, reported_tcb_bootloader, reported_tcb_tee,
// reported_tcb_snp, reported_tcb_microcode (numbers); policy_smt_allowed,
// policy_migrate_ma, policy_debug_allowed, policy_single_socket,
// platform_tsme_enabled, platform_smt_enabled (booleans); measurement,
// report_data, init_data, chip_id (lower-case hex). init_data is HOST_DATA;
// chip_id is zeros where the host masks it.
//
// In addition:
//
//   - simulated (boolean: the chain ends in a development root);
//     development_root and development_root_sha256 (only then)
//   - generation ("Milan", "Genoa", "Turin"), signer ("VCEK", "VLEK"), csp_id
//     (VLEK only: the provider), version, guest_svn, vmpl (numbers)
//   - policy_cxl_allowed, policy_mem_aes_256_xts, policy_rapl_disabled,
//     policy_ciphertext_hiding, policy_page_swap_disabled, platform_ecc_enabled,
//     platform_rapl_disabled, platform_ciphertext_hiding_enabled,
//     platform_alias_check_complete, platform_iommu_write_safe,
//     platform_tio_enabled, author_key_enabled, mask_chip_key (booleans)
//   - host_data, family_id, image_id, id_key_digest, author_key_digest,
//     report_id, report_id_ma (hex)
//   - current_version, committed_version ("1.55.40")
//   - {committed,launch,current}_tcb_{bootloader,tee,snp,microcode}, and
//     {reported,committed,launch,current}_tcb_fmc on Turin (numbers)
//   - launch_mit_vector, current_mit_vector (16 hex digits, report version 5)
//   - collateral_expiration_status (with Options.CheckRevocation, where there is
//     a list: "0" current, "1" out of date)
package snpverify
