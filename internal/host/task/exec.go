package task

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/api/events"
	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/stdio"
)

// userOf is the user of a container's process, for comparison with an exec's.
type userOf struct{ *specs.User }

// Exec admits a command to a container; Start runs it. The guest's refusal is
// told here.
func (s *Service) Exec(ctx context.Context, r *api.ExecProcessRequest) error {
	if err := checkID("exec_id", r.GetExecID()); err != nil {
		return err
	}
	spec := new(specs.Process)
	if err := decode("spec", r.GetSpec(), "Process", spec); err != nil {
		return err
	}
	c, err := s.container(r.GetID())
	if err != nil {
		return err
	}
	st, _ := c.init.now()
	switch {
	case c.virtual():
		return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("exec: %q is the pod's sandbox, which has no process of its own; exec in one of its containers", c.id))
	case st != running && st != created:
		return c.init.wrong("exec", st)
	}
	if err := c.user.same(spec.User); err != nil {
		return err
	}
	ctx, cancelCause := context.WithCancelCause(ctx)
	defer cancelCause(nil)
	p := newProcess(c.id, r.GetExecID(), stdio.Paths{
		Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), Terminal: r.GetTerminal(), ID: r.GetExecID(), Namespace: s.o.Namespace,
	}, cancelCause)
	if err := c.addExec(p); err != nil {
		return err
	}
	err = s.createExec(ctx, c, p, &agentapi.ExecRequest{
		ContainerId: c.id, ExecId: p.exec, Args: spec.Args, Env: &agentapi.StringList{Values: spec.Env}, Cwd: optional(spec.Cwd),
		Terminal: r.GetTerminal(), Stdin: r.GetStdin() != "",
	})
	if err != nil {
		if p.io != nil {
			p.io.Close()
		}
		c.removeExec(p)
		p.setGone()
		return fmt.Errorf("exec in container %q: %w", c.id, err)
	}
	if c.isEnding() {
		// Its container's end has not seen it.
		s.finish(c, p, killedStatus)
	}
	return nil
}

func (s *Service) createExec(ctx context.Context, c *container, p *process, r *agentapi.ExecRequest) error {
	h, m, err := s.running()
	if err != nil {
		return err
	}
	if p.io, err = stdio.Open(p.paths, s.log.With("container", c.id, "exec", p.exec)); err != nil {
		return err
	}
	ctx, cancel := bounded(ctx, s.o.Times.Call, "exec")
	defer cancel()
	err = s.within(ctx, func() error {
		_, err := m.Agent().Exec(ctx, r)
		return err
	})
	if err == nil {
		err = p.setCreated(ctx, uint32(m.PID()), func() {
			s.events.put(topicExecAdded, &events.TaskExecAdded{ContainerID: c.id, ExecID: p.exec})
		})
	}
	if err != nil && ctx.Err() != nil {
		// The guest may have it by now.
		s.deleteInGuest(context.WithoutCancel(ctx), h, c.id, p.exec)
		return context.Cause(ctx)
	}
	return err
}

// same refuses an exec as somebody else: the guest runs commands as the user
// that the container has.
func (u userOf) same(other specs.User) error {
	if u.User == nil {
		return nil
	}
	if u.UID != other.UID || u.GID != other.GID || other.Username != "" && u.Username != other.Username {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("spec.user: expected the container's user %d:%d, got %d:%d: a command runs as its container does", u.UID, u.GID, other.UID, other.GID))
	}
	return nil
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// maxAny bounds what containerd may pass in one field, in bytes.
const maxAny = 4 << 20

// decode reads a value that containerd has put into a request as JSON, see
// containerd/containerd core/runtime/typeurl.go. The type's name is the last
// part of its URL.
func decode(field string, a *anypb.Any, name string, into any) error {
	switch {
	case a == nil:
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%s: expected an OCI %s, got nothing", field, name))
	case !strings.HasSuffix(a.GetTypeUrl(), "opencontainers/runtime-spec/1/"+name):
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%s: expected an OCI %s, got type %s", field, name, quote(a.GetTypeUrl())))
	case len(a.GetValue()) > maxAny:
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%s: expected at most %d bytes, got %d", field, maxAny, len(a.GetValue())))
	}
	if err := json.Unmarshal(a.GetValue(), into); err != nil {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%s: %v", field, err))
	}
	return nil
}

// checkID takes what the guest takes: 1 to 64 characters of [a-zA-Z0-9._-],
// a letter or digit first.
func checkID(field, id string) error {
	bad := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '_' && r != '-'
	}
	if id == "" || len(id) > 64 || strings.ContainsFunc(id, bad) || slices.Contains([]byte("._-"), id[0]) {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%s: expected 1 to 64 characters of [a-zA-Z0-9._-], a letter or digit first, got %s", field, quote(id)))
	}
	return nil
}
