package volumes

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// maxMessage is what the kubelet takes of a container's last words
// (kubernetes@v1.35.4 pkg/kubelet/container, MaxContainerTerminationMessageLength).
const maxMessage = 4096

// keptMessage is what a person reads of a container that has failed and whose
// policy does not let the host know what it said.
const keptMessage = "the container failed; what it said stays in the guest, since the pod's policy does not let the host read its output (allow.logs)"

// Exited fetches what the container has left at its termination message path, and
// writes it to the file that the kubelet made for it. To be called once, when
// the container has ended and before it is deleted in the guest. A container
// without such a file, or one that Prepare does not know, needs nothing.
func (m *Manager) Exited(ctx context.Context, h Host, id string) error {
	m.mu.Lock()
	use := m.uses[id]
	m.mu.Unlock()
	if use == nil || use.messageFile == "" {
		return nil
	}
	resp, err := h.Agent().TerminationMessage(ctx, &agentapi.TerminationMessageRequest{ContainerId: id})
	message := resp.GetMessage()
	if refused(err) {
		// The kubelet would show the end of the log instead, and that is empty, too.
		m.o.Logger.DebugContext(ctx, "the guest keeps the termination message", "container", id, "error", err)
		message, err = []byte(keptMessage), nil
	}
	if err != nil {
		return fmt.Errorf("termination message of container %s: %w", id, err)
	}
	if len(message) == 0 {
		return nil
	}
	// The guest is not trusted to keep the bound; the end of a message counts.
	message = message[max(0, len(message)-maxMessage):]
	if err := m.pod.writeFile(use.messageFile, message); err != nil {
		return fmt.Errorf("termination message of container %s: %w", id, err)
	}
	return nil
}

// Lost writes why a container has ended whose machine is gone, to where its own
// last words would be: the kubelet shows them in the pod's status. It needs the
// same as Exited.
func (m *Manager) Lost(id, reason string) error {
	m.mu.Lock()
	use := m.uses[id]
	m.mu.Unlock()
	if use == nil || use.messageFile == "" {
		return nil
	}
	message := strings.ToValidUTF8(reason[:min(len(reason), maxMessage)], "")
	if err := m.pod.writeFile(use.messageFile, []byte(message)); err != nil {
		return fmt.Errorf("termination message of container %s: %w", id, err)
	}
	return nil
}

// writeFile replaces the content of a regular file below the pod's directory.
// It makes none and follows no links.
func (p *podDir) writeFile(rel string, content []byte) (err error) {
	f, err := p.open(rel, unix.O_WRONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s: expected a regular file, got %s", clip(rel), typeName(info.Mode().Type()))
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.Write(content)
	return err
}
