package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	execTimeout = 2 * time.Minute
	execOutput  = 8 << 20
	execMessage = 2000
)

// Chroot runs programs in root with the node's usual PATH, and no input. It
// takes the right to change the root directory, unless root is "/".
func Chroot(root string) Exec {
	return func(ctx context.Context, argv ...string) ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, execTimeout)
		defer cancel()
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Path, cmd.Err = argv[0], nil // the path is the node's, not ours
		cmd.Dir = "/"
		cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "SYSTEMD_IGNORE_CHROOT=1"}
		if root != "/" {
			cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		}
		return output(cmd)
	}
}

// output runs a program and returns its output, or what it said why not.
func output(cmd *exec.Cmd) ([]byte, error) {
	stdout, stderr := &bounded{limit: execOutput}, &bounded{limit: execMessage}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		said := strings.Join(strings.Fields(stderr.String()), " ")
		if said != "" {
			said = ": " + said
		}
		return stdout.Bytes(), fmt.Errorf("%s: %w%s", strings.Join(cmd.Args, " "), cause(err), said)
	}
	return stdout.Bytes(), nil
}

// bounded keeps the first bytes and drops the rest.
type bounded struct {
	bytes.Buffer
	limit int
}

func (b *bounded) Write(p []byte) (int, error) {
	b.Buffer.Write(p[:min(len(p), b.limit-b.Len())])
	return len(p), nil
}

// cause drops the path of an error whose message has it already.
func cause(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

func isNotDir(err error) bool { return errors.Is(err, syscall.ENOTDIR) }
