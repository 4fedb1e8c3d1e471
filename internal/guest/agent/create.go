package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/guest/container"
	"github.com/coffer-project/coffer/internal/guest/datahub"
	"github.com/coffer-project/coffer/internal/guest/image"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/blobcache"
	"github.com/coffer-project/coffer/oci/pull"
	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/secret"
)

// maxAccounts bounds /etc/passwd and /etc/group of an image.
const maxAccounts = 1 << 20

// CreateContainer implements the protocol.
func (a *Agent) CreateContainer(ctx context.Context, req *agentapi.CreateContainerRequest) (*agentapi.CreateContainerResponse, error) {
	resp, err := a.createContainer(ctx, req)
	return resp, a.fail(ctx, "CreateContainer", err)
}

func (a *Agent) createContainer(ctx context.Context, req *agentapi.CreateContainerRequest) (*agentapi.CreateContainerResponse, error) {
	id := req.GetContainerId()
	if err := checkID("container_id", id); err != nil {
		return nil, err
	}
	hash, err := requestHash(req)
	if err != nil {
		return nil, err
	}
	for {
		sb, err := a.theSandbox()
		if err != nil {
			return nil, err
		}
		c, mine := a.reserve(id, hash)
		if mine {
			err := a.create(ctx, sb, c, req)
			if err != nil {
				a.forget(c)
			}
			c.unlock()
			return c.response, err
		}
		// An earlier call has it, perhaps one of a host that has gone.
		err = c.lock(ctx)
		if errors.Is(err, errGone) {
			continue // it failed, or was deleted: it is our turn
		}
		if err != nil {
			return nil, err
		}
		c.unlock()
		if c.request != hash {
			return nil, &podpolicy.Refusal{Rule: podpolicy.RuleContainerID, Path: "id", Expected: "an id that is not in use, or the request that made it",
				Got: "another request", Help: "delete that container first"}
		}
		return c.response, nil
	}
}

// reserve returns the container with the id; a new one is the caller's, with
// its turn held.
func (a *Agent) reserve(id string, hash [32]byte) (c *ctr, mine bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.containers[id]; c != nil {
		return c, false
	}
	c = &ctr{id: id, request: hash, turn: make(chan struct{}, 1), created: make(chan struct{}), execs: map[string]*proc{}}
	a.containers[id] = c
	return c, true
}

// create admits, attests, pulls, configures and makes the container. When it
// fails, nothing of it is left.
func (a *Agent) create(ctx context.Context, sb *sandbox, c *ctr, req *agentapi.CreateContainerRequest) (err error) {
	admission, err := sb.guard.Admit(containerProposal(req))
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			if derr := sb.guard.Deleted(c.id, ""); derr != nil {
				a.log.WarnContext(ctx, "forget a container that failed", "container", c.id, "error", derr)
			}
		}
	}()
	if err := a.attest(ctx, sb); err != nil {
		return err
	}
	img, err := a.pull(ctx, sb, c.id, admission.Image())
	if err != nil {
		return err
	}
	if err := sb.measurePull(ctx, admission.Image().String(), img); err != nil {
		return err
	}
	passwd, group, err := accounts(img.Root)
	if err != nil {
		return failed("image", fmt.Errorf("image %s: %w", img.Digest, err))
	}
	ic := img.Config.Config
	config, err := admission.Configure(podpolicy.ImageConfig{
		Digest: string(img.Digest), Entrypoint: ic.Entrypoint, Cmd: ic.Cmd, Env: ic.Env, User: ic.User,
		WorkingDir: ic.WorkingDir, StopSignal: ic.StopSignal, Passwd: passwd, Group: group,
	})
	if err != nil {
		return err
	}
	c.resolved = map[string]string{}
	env, err := environment(config.Env, func(v podpolicy.EnvVar) (string, error) {
		value, err := resolve(ctx, sb.hub, v)
		c.resolved[v.Name] = value
		return value, err
	})
	if err != nil {
		return err
	}
	if err := a.build(ctx, sb, c, config, env, img); err != nil {
		return err
	}
	c.name, c.image = config.Name, string(img.ManifestDigest)
	c.response = &agentapi.CreateContainerResponse{ManifestDigest: string(img.ManifestDigest)}
	close(c.created)
	return nil
}

// pull gets the admitted image.
func (a *Agent) pull(ctx context.Context, sb *sandbox, id string, admitted podpolicy.ImageRef) (*image.Image, error) {
	ref, err := oci.ParseReference(admitted.String())
	if err != nil {
		return nil, invalid("image: %w", err)
	}
	if ref.Digest == "" && sb.guard.Sealed() {
		return nil, unready("image %s: a sealed pod's image has a digest", ref)
	}
	policy, registry, err := sb.imageConfig(ctx, a.o.NewImagePolicy)
	if err != nil {
		return nil, err
	}
	fetcher, closeFetcher, err := a.o.NewFetcher(registry, ref)
	if err != nil {
		return nil, failed("image", fmt.Errorf("image %s: %w", ref, err))
	}
	fetched := false
	defer func() {
		closeFetcher()
		if fetched {
			// A pull takes several times the memory that the agent needs from now on:
			// it is the workload's, or the host's.
			debug.FreeOSMemory()
		}
	}()
	cached := blobcache.New(fetcher, a.blobs, blobcache.Options{Lied: func(d oci.Digest, err error) { a.lied(ctx, d, err) }})
	// Layers share keys: each is fetched once.
	keys := sb.hub.Keyring()
	defer keys.Close()
	progress := a.progress(id, string(ref.Digest))
	img, err := sb.images.Pull(ctx, image.Request{
		Ref: ref, Fetcher: cached, Policy: policy, Keys: keys, Concurrency: sb.guest.Image.MaxConcurrentDownloads,
		Progress: func(p pull.Progress) { fetched = true; progress(p) },
	})
	if err != nil {
		if ctx.Err() == nil && refusalOf(err) == nil {
			err = failed("image", err)
		}
		return nil, err
	}
	return img, nil
}

// lied tells of a host whose blob cache gave something else than was asked for.
// It is no secret of the pod's, and a host may not know that it happens.
func (a *Agent) lied(ctx context.Context, d oci.Digest, err error) {
	a.log.WarnContext(ctx, "the host's blob cache is bypassed", "digest", string(d), "error", err)
	a.events.add(&agentapi.Event{Body: &agentapi.Event_BlobCache{BlobCache: &agentapi.BlobCache{
		Digest: string(d), Problem: strings.ToValidUTF8(clip(err.Error()), "\uFFFD"),
	}}})
}

// progressSteps is how many events a pull gives at most, so that one does not
// push the others out of the log.
const progressSteps = 50

func (a *Agent) progress(id, digest string) func(pull.Progress) {
	last := int64(-1)
	return func(p pull.Progress) {
		step := int64(0)
		if p.Total > 0 {
			step = p.Done * progressSteps / p.Total
		}
		if step <= last {
			return
		}
		last = step
		a.events.add(&agentapi.Event{Body: &agentapi.Event_Pull{Pull: &agentapi.PullProgress{
			ContainerId: id, Digest: digest, DoneBytes: uint64(max(p.Done, 0)), TotalBytes: uint64(max(p.Total, 0)),
		}}})
	}
}

// accounts reads the image's user and group files beneath its root.
func accounts(dir string) (passwd, group []byte, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, nil, err
	}
	defer root.Close() //nolint:errcheck // a directory
	read := func(name string) ([]byte, error) {
		// Nonblocking: an image may have a FIFO by that name.
		f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("/%s: %w", name, err)
		}
		defer f.Close() //nolint:errcheck // read only
		if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
			return nil, fmt.Errorf("/%s: not a regular file", name)
		}
		b, err := io.ReadAll(io.LimitReader(f, maxAccounts+1))
		if err == nil && len(b) > maxAccounts {
			err = fmt.Errorf("/%s: larger than %d bytes", name, maxAccounts)
		}
		return b, err
	}
	if passwd, err = read("etc/passwd"); err != nil {
		return nil, nil, err
	}
	group, err = read("etc/group")
	return passwd, group, err
}

// environment writes variables as KEY=VALUE; secrets are had from resolve.
// References between variables are replaced here and not before: some are to
// secrets, which only the guest has.
func environment(vars []podpolicy.EnvVar, resolve func(podpolicy.EnvVar) (string, error)) ([]string, error) {
	values := make(map[string]string, len(vars))
	for _, v := range vars {
		if v.Expand != "" {
			continue
		}
		value := v.Value
		if v.Sealed != "" || v.Resource != "" {
			var err error
			if value, err = resolve(v); err != nil {
				return nil, err
			}
		}
		values[v.Name] = value
	}
	env := make([]string, 0, len(vars))
	for _, v := range vars {
		value, ok := values[v.Name]
		if !ok {
			value = podpolicy.Expand(v.Expand, func(name string) (string, bool) { value, ok := values[name]; return value, ok })
		}
		env = append(env, v.Name+"="+value)
	}
	return env, nil
}

// arguments are a container's, with references to its variables replaced where
// the policy says so.
func arguments(p *podpolicy.ContainerConfig, env []string) []string {
	if !p.ExpandArgs {
		return p.Args
	}
	values := make(map[string]string, len(env))
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		values[name] = value
	}
	args := make([]string, len(p.Args))
	for i, arg := range p.Args {
		args[i] = podpolicy.Expand(arg, func(name string) (string, bool) { value, ok := values[name]; return value, ok })
	}
	return args
}

// resolve fetches the value of a variable that is a secret.
func resolve(ctx context.Context, hub *datahub.Hub, v podpolicy.EnvVar) (string, error) {
	var value secret.Bytes
	var err error
	if v.Sealed != "" {
		value, err = hub.Unseal(ctx, v.Sealed)
	} else {
		value, err = hub.Resource(ctx, v.Resource)
	}
	if err != nil {
		err = fmt.Errorf("env.%s: %w", v.Name, err)
		if refusalOf(err) == nil && ctx.Err() == nil {
			err = failed("secret", err)
		}
		return "", err
	}
	return datahub.EnvValue(v.Name, value)
}

// build makes the container from a decided configuration.
func (a *Agent) build(ctx context.Context, sb *sandbox, c *ctr, p *podpolicy.ContainerConfig, env []string, img *image.Image) (err error) {
	root, err := sb.images.Mount(img, c.id)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, sb.images.Unmount(c.id))
		}
	}()
	v, err := a.mounts(ctx, sb, p)
	defer v.close() // the container's mounts keep what they hold
	if err != nil {
		return err
	}
	if err := a.addLastWords(c, v, p); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			c.lastWords.close()
		}
	}()
	declared, err := imageVolumes(root, img.Config.Config.Volumes, p)
	if err != nil {
		return failed("image", fmt.Errorf("image %s: %w", img.Digest, err))
	}
	v.mounts = append(v.mounts, declared...)
	pids, err := a.pidNamespace(sb, p)
	defer pids.close() // the container is in it by then
	if err != nil {
		return err
	}
	c.config = container.Config{
		Rootfs: root, Args: arguments(p, env), Env: env, Cwd: p.Cwd, UID: p.User.UID, GID: p.User.GID, Groups: p.User.Groups,
		Capabilities: p.Capabilities, NoNewPrivileges: p.NoNewPrivileges, ReadOnlyRoot: p.ReadOnlyRoot,
		Unconfined: p.Seccomp == podpolicy.SeccompUnconfined, Unmasked: p.Unmasked, Privileged: privileged(p), RLimits: a.rlimits(p.RLimits),
		Terminal: p.Terminal, Mounts: v.mounts, Devices: v.devices,
		Limits: container.Limits(p.Limits), PIDNamespace: pids.path, WithoutDeviceRules: a.o.WithoutDeviceRules,
	}
	if c.config.Privileged && a.o.Nodes != nil {
		if c.config.Nodes, err = a.o.Nodes(); err != nil {
			return failed("runtime", err)
		}
	}
	spec, err := container.Spec(c.config)
	if err != nil {
		return failed("runtime", err)
	}
	c.c, err = a.o.Runtime.Create(ctx, c.id, spec, container.IO{Terminal: p.Terminal, Stdin: p.Stdin})
	if err != nil {
		return failed("runtime", err)
	}
	c.init = newProc(c.id, "")
	c.init.attach(c.c.Init, sb.guard.Stream(c.id, "", podpolicy.Stdout), a.log)
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.stop = stop
	go a.watch(sb, c, c.init, c.c.Init)
	go func() {
		err := c.c.WatchOOM(watching, func(kills uint64) { a.reportOOM(c, kills) })
		if err != nil && watching.Err() == nil {
			a.log.WarnContext(watching, "watch memory", "container", c.id, "error", err)
		}
	}()
	return nil
}

// privileged: every capability, no filter, nothing hidden. Only an unsealed pod
// has such containers, and what they have is the guest's.
func privileged(p *podpolicy.ContainerConfig) bool {
	return p.Unmasked && p.Seccomp == podpolicy.SeccompUnconfined && podpolicy.AllCapabilities(p.Capabilities)
}

func (a *Agent) rlimits(limits map[string]podpolicy.RLimit) map[string]container.RLimit {
	out := make(map[string]container.RLimit, len(limits)+len(a.o.RLimits))
	maps.Copy(out, a.o.RLimits)
	for name, l := range limits {
		out[name] = container.RLimit(l)
	}
	return out
}

// podFiles are the files every container has from its pod.
func podFiles() map[string]string {
	return map[string]string{"hosts": "/etc/hosts", "hostname": "/etc/hostname", "resolv.conf": "/etc/resolv.conf"}
}
