// Testguest is the init process of a virtual machine that the host's tests
// boot. The kernel parameter coffer.test says what it does:
//
//	echo      answers on the port org.coffer.test.0 with what comes in
//	poweroff  ends in order
//	panic     exits, at which the kernel panics
//	hang      says so on the console and does nothing more
//	agent     serves the agent protocol on its port (a stub that knows Hello,
//	          Shutdown and events) and asks the software TEE for a report
package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const testPort = "org.coffer.test.0"

func main() {
	for _, m := range []struct{ source, target string }{
		{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"},
	} {
		if err := syscall.Mount(m.source, m.target, m.source, 0, ""); err != nil {
			fmt.Println("testguest: mount", m.target, err)
		}
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		fmt.Println("testguest:", err)
	}
	mode := "poweroff"
	for word := range strings.FieldsSeq(string(cmdline)) {
		if m, ok := strings.CutPrefix(word, "coffer.test="); ok {
			mode = m
		}
	}
	fmt.Println("testguest: mode", mode)
	switch mode {
	case "echo":
		err = echo()
	case "agent":
		err = serveAgent()
	case "panic":
		fmt.Println("testguest: about to exit")
		os.Exit(3)
	case "hang":
		for {
			_ = syscall.Pause()
		}
	}
	if err != nil {
		fmt.Println("testguest:", err)
	}
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}

func echo() error {
	f, err := openPort(testPort)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, f)
	return err
}

// openPort waits for the virtio-serial port of that name. A test guest may
// poll; the real one does not.
func openPort(name string) (*os.File, error) {
	for range 1000 {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			data, err := os.ReadFile(n)
			if err == nil && strings.TrimSpace(string(data)) == name {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(n)), os.O_RDWR, 0)
			}
		}
		<-time.After(10 * time.Millisecond)
	}
	return nil, fmt.Errorf("no port %s", name)
}
