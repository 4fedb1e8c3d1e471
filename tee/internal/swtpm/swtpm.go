// Package swtpm runs a software TPM 2.0 (Debian: swtpm) for tests.
package swtpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// ErrAbsent says that the machine has no swtpm.
var ErrAbsent = errors.New("swtpm is not installed (Debian: swtpm)")

// TPM is a running software TPM. It is a go-tpm transport, safe for concurrent
// use.
type TPM struct {
	mu     sync.Mutex
	conn   net.Conn
	cmd    *exec.Cmd
	exited chan struct{}
}

// Start runs a TPM whose state is in dir, which has to exist. It is started up
// and has empty passwords. ctx bounds its life.
func Start(ctx context.Context, dir string) (*TPM, error) {
	path, err := exec.LookPath("swtpm")
	if err != nil {
		return nil, ErrAbsent
	}
	// The server's end of a socket pair: no name in the file system and no port.
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("swtpm: socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "tpm"), os.NewFile(uintptr(pair[1]), "swtpm")
	defer theirs.Close() //nolint:errcheck // the child has its copy
	conn, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		return nil, fmt.Errorf("swtpm: %w", err)
	}
	cmd := exec.CommandContext(ctx, path, "socket", "--tpm2", "--tpmstate", "dir="+dir, "--fd", "3", "--flags", "not-need-init,startup-clear")
	cmd.ExtraFiles = []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("swtpm: %w", err)
	}
	t := &TPM{conn: conn, cmd: cmd, exited: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended does not matter
		close(t.exited)
	}()
	return t, nil
}

// maxResponse is more than any response has.
const maxResponse = 16 << 10

// Send implements transport.TPM.
func (t *TPM) Send(command []byte) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	// Making RSA keys takes seconds on a busy machine.
	if err := t.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	if _, err := t.conn.Write(command); err != nil {
		return nil, fmt.Errorf("swtpm: %w", err)
	}
	out := make([]byte, 10) // tag, size, response code
	if _, err := io.ReadFull(t.conn, out); err != nil {
		return nil, fmt.Errorf("swtpm: %w", err)
	}
	size := binary.BigEndian.Uint32(out[2:])
	if size < 10 || size > maxResponse {
		return nil, fmt.Errorf("swtpm: response of %d bytes", size)
	}
	out = append(out, make([]byte, size-10)...) //nolint:makezero // the header is filled in
	if _, err := io.ReadFull(t.conn, out[10:]); err != nil {
		return nil, fmt.Errorf("swtpm: %w", err)
	}
	return out, nil
}

// Close ends the TPM and waits until it has ended. It implements
// transport.TPMCloser.
func (t *TPM) Close() error {
	_ = t.conn.Close()
	select {
	case <-t.exited:
		return nil
	case <-time.After(5 * time.Second):
	}
	if err := t.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("swtpm: %w", err)
	}
	<-t.exited
	return nil
}
