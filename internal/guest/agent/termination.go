package agent

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/guest/container"
	"github.com/coffer-project/coffer/podpolicy"
)

// maxLastWords is how much of a termination message is read: as much as the
// kubelet takes of one container.
const maxLastWords = 4096

// lastWords is the file that a container may leave a message in. The container
// has it by a mount and can write it, but can neither move nor replace it: the
// name is in a directory of the agent's, and is read by a descriptor that was
// opened before the container was.
type lastWords struct {
	file *os.File // nil without one
}

// addLastWords makes the file and mounts it.
func (a *Agent) addLastWords(c *ctr, v *volumes, p *podpolicy.ContainerConfig) error {
	path := p.TerminationPath
	if path == "" || slices.ContainsFunc(p.Mounts, func(m podpolicy.MountConfig) bool { return m.Path == path }) {
		return nil
	}
	name := filepath.Join(a.o.PodDir, "last-words."+c.id)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("termination message: %w", err)
	}
	c.lastWords.file = f
	// Whoever the container runs as may write it, as with the kubelet.
	if err := f.Chmod(0o666); err != nil {
		c.lastWords.close()
		return fmt.Errorf("termination message: %w", err)
	}
	v.mounts = append(v.mounts, container.Mount{Source: name, Path: path})
	return nil
}

// close removes the file.
func (l *lastWords) close() {
	if l.file == nil {
		return
	}
	_ = os.Remove(l.file.Name())
	_ = l.file.Close()
	l.file = nil
}

// read returns the end of what there is.
func (l *lastWords) read() ([]byte, error) {
	if l.file == nil {
		return nil, nil
	}
	st, err := l.file.Stat()
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(l.file, max(0, st.Size()-maxLastWords), maxLastWords))
}

// TerminationMessage implements the protocol. What a container leaves is output:
// a host that may not read its logs is told that there is nothing, or, when the
// container has failed, that it may not: a person who wants to know why is told
// where to look.
func (a *Agent) TerminationMessage(ctx context.Context, req *agentapi.TerminationMessageRequest) (*agentapi.TerminationMessageResponse, error) {
	message, err := a.terminationMessage(ctx, req.GetContainerId())
	if err != nil {
		return nil, a.fail(ctx, "TerminationMessage", err)
	}
	return &agentapi.TerminationMessageResponse{Message: message}, nil
}

func (a *Agent) terminationMessage(ctx context.Context, id string) ([]byte, error) {
	c, sb, err := a.lookup(id)
	if err != nil {
		return nil, err
	}
	if err := c.lock(ctx); err != nil {
		return nil, err
	}
	defer c.unlock()
	if !c.init.ended() {
		return nil, unready("%s has not ended", c.init)
	}
	if !sb.guard.TerminationMessage(id) {
		return nil, a.keepLastWords(ctx, c)
	}
	message, err := c.lastWords.read()
	if err != nil {
		return nil, failed("termination message", err)
	}
	return message, nil
}

// keepLastWords answers a host that may not have them. Nothing in the answer
// depends on whether there are any.
func (a *Agent) keepLastWords(ctx context.Context, c *ctr) error {
	if c.lastWords.file == nil {
		return nil
	}
	r := &podpolicy.Refusal{
		Rule: RuleStream, Path: "allow.logs", Expected: "a container whose logs the policy allows", Got: "the termination message of " + c.id,
		Help: "what the container has left stays inside the guest",
	}
	if c.init.status.Code != 0 {
		return r
	}
	a.refusedStream(ctx, r)
	return nil
}
