// Package vtpm predicts the PCRs of a TPM after OVMF has started a Linux kernel
// that QEMU was given (-kernel, -initrd, -append), up to the first instruction of
// the initrd. Everything is computed from the files; nothing comes from an event
// log, except the one digest described below.
//
// What the PCRs depend on:
//
//	0   the firmware: its version string, its PEI volume as the machine's memory
//	    holds it, its DXE volume. The PEI volume contains data that a PEI module
//	    has written before it is measured (edk2, EFI_HOB_PLATFORM_INFO of
//	    OvmfPkg/PlatformPei: type of machine, memory, address width, number of CPUs),
//	    at a place that the file does not tell. It is predicted only with
//	    [Launch.PEIVolume].
//	1   boot options. Devices do not matter with direct kernel boot. Firmware newer
//	    than edk2 of 2022 measures ACPI and SMBIOS tables here as well, which is not
//	    predicted.
//	2   nothing but a separator, as long as no device has an option ROM (QEMU:
//	    romfile=).
//	3   a separator.
//	4   the kernel's Authenticode digest. QEMU (except with AMD SEV) writes into the
//	    kernel's header where it would place the initrd, so that the digest depends
//	    on the sizes of memory and initrd.
//	5   the end of boot services.
//	6   a separator.
//	7   secure boot: SecureBoot, PK, KEK, db, dbx. With secure boot on, the
//	    certificate that let the kernel pass is measured too, and OVMF starts a kernel
//	    that did not pass in another way, without measuring it: 4, 7 and 9 are not
//	    predicted then.
//	9   command line and initrd, measured by the kernel's EFI stub (Linux 6.9 and
//	    newer measure both).
//	10  is Linux's own (IMA), 8 and 11 to 15 are left to the system.
//
// This is tested live with Debian 12's OVMF (2022.11), QEMU (7.2) and swtpm, and the
// kernel of the guest image.
package vtpm
