// Command testguest is the /init of the machine that the tests of tee/measure/vtpm
// boot: it lets the TPM quote its registers over the nonce in /nonce, writes the
// evidence to the second serial port, and turns the machine off.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/coffer-project/coffer/tee/tpm/tpmattest"
)

func main() {
	if err := run(); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "testguest:", err)
	}
	syscall.Sync()
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	select {} // init must not end
}

func run() error {
	for _, m := range [][2]string{{"devtmpfs", "/dev"}, {"sysfs", "/sys"}, {"securityfs", "/sys/kernel/security"}} {
		if err := syscall.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", m[0], err)
		}
	}
	nonce, err := os.ReadFile("/nonce")
	if err != nil {
		return err
	}
	device, err := tpmattest.Open(tpmattest.DefaultDevices()...)
	if err != nil {
		return err
	}
	a, err := tpmattest.New(tpmattest.Options{
		TPM: device, CreateAK: true, Kind: tpmattest.P256,
		EventLog: func() ([]byte, error) { return os.ReadFile("/sys/kernel/security/tpm0/binary_bios_measurements") },
	})
	if err != nil {
		return err
	}
	evidence, err := a.Evidence(context.Background(), nonce)
	if err != nil {
		return err
	}
	port, err := os.OpenFile("/dev/ttyS1", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(port, "\nEVIDENCE "+string(evidence)+" END\n"); err != nil {
		return err
	}
	return port.Close()
}
