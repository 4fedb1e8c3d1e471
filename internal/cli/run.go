package cli

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/oci/registries"
	"github.com/coffer-project/coffer/podpolicy"
)

// runFlags are the flags of `coffer run` and of the commands that show what it
// would do.
type runFlags struct {
	o          run.Options
	env        []string
	secretEnv  []string
	memory     string
	policy     string
	initdata   string
	trusteeCA  string
	registryCA []string
	registries string
	noCache    bool
	image      string
	user       string
	scratch    string
	volumes    []string
	services   serviceFlags
}

func (r *runFlags) add(c *cobra.Command) {
	f := c.Flags()
	addGuestFlags(c, &r.o.Guest)
	f.StringVar(&r.memory, "memory", "512", "the machine's memory in MiB, or with a suffix (2Gi)")
	f.StringVar(&r.o.Accel, "accel", "auto", "what executes the guest: auto, kvm or tcg; auto boots a small guest once to find out")
	f.StringVar(&r.o.Transport, "transport", "serial", "what carries the agent protocol: serial, or vsock where the host has /dev/vhost-vsock")
	f.StringArrayVarP(&r.env, "env", "e", nil, "KEY=VALUE, or KEY for the caller's value (repeatable)")
	f.StringArrayVar(&r.secretEnv, "secret-env", nil, "KEY=kbs:///REPOSITORY/TYPE/TAG or KEY=sealed.…: resolved inside the guest (repeatable)")
	f.StringVarP(&r.user, "user", "u", "", "UID[:GID]")
	f.StringVarP(&r.o.Flags.Cwd, "workdir", "w", "", "working directory")
	f.BoolVarP(&r.o.Flags.Terminal, "tty", "t", false, "give the container a terminal")
	f.BoolVarP(&r.o.Flags.Stdin, "interactive", "i", false, "connect standard input (implied by -t)")
	f.BoolVar(&r.o.Flags.ReadOnlyRoot, "read-only", false, "make the root file system read-only")
	f.StringVar(&r.scratch, "scratch", "", "keep images and what the container writes on an encrypted disk of `SIZE` (4Gi), which ends with the machine (default: in its memory)")
	f.StringArrayVar(&r.volumes, "volume", nil, "NAME=FILE[:SIZE]: the file or block device that holds a block volume of the policy; a size makes a missing file (repeatable)")
	f.StringVar(&r.policy, "policy", "", "pod policy file (default: written from the image and the flags)")
	f.StringVar(&r.initdata, "initdata", "", "initdata file as its owner registered it, instead of --policy")
	f.StringVar(&r.o.TrusteeURL, "trustee", "", "the trustee's URL as the guest reaches it (default: an embedded trustee)")
	f.StringVar(&r.trusteeCA, "trustee-ca", "", "PEM file with the certificates that vouch for the trustee")
	r.services.add(c)
	f.StringVar(&r.o.State, "state", run.DefaultState(), "state directory: software TEE, embedded trustee")
	f.StringVar(&r.image, "image-policy", "", "containers-policy.json file, or kbs:/// URI of one: which signatures the guest demands")
	f.StringVar(&r.o.Credentials, "credentials", "", "kbs:/// URI of the docker auth.json that the guest uses")
	f.StringVar(&r.o.Image.AuthFile, "authfile", "", "docker auth.json with which this program asks the registry")
	f.StringArrayVar(&r.registryCA, "registry-ca", nil, "[HOST[:PORT]=]FILE: PEM certificates to trust for registries; with HOST for that one, which then trusts no other (repeatable)")
	f.StringArrayVar(&r.o.Image.PlainHTTP, "plain-http", nil, "registry host[:port] to use without TLS (repeatable)")
	f.StringVar(&r.registries, "registries-conf", "", "containers-registries.conf file: mirrors, insecure and blocked registries, short names; for this program and, but for the short names, for the guest")
	f.StringVar(&r.o.BlobCache, "blob-cache", run.DefaultBlobCache(), "directory of the cache from which guests get image blobs that another has fetched")
	f.BoolVar(&r.noCache, "no-blob-cache", false, "keep no image blobs on this host, and give none to the guest")
	f.BoolVar(&r.o.Unsealed, "unsealed", false, "run without initdata: no policy is in force, and no secret is given")
}

// options turns flags into options.
func (r *runFlags) options(a *app, positional []string) (run.Options, error) {
	o := r.o
	o.ImageName = positional[0]
	// Flags end at the image, so a "--" behind it is still there.
	if len(positional) > 1 && positional[1] == "--" {
		positional = slices.Delete(slices.Clone(positional), 1, 2)
	}
	if len(positional) > 1 {
		command := positional[1:]
		o.Flags.Args = &command
	}
	var err error
	if o.MemoryMiB, err = memoryMiB(r.memory); err != nil {
		return o, err
	}
	if o.Flags.Env, err = environment(r.env); err != nil {
		return o, err
	}
	if o.Flags.Secrets, err = keyValues("--secret-env", r.secretEnv); err != nil {
		return o, err
	}
	if r.user != "" {
		if o.Flags.User, err = parseUser(r.user); err != nil {
			return o, err
		}
	}
	if r.scratch != "" {
		if o.Scratch, err = run.ParseSize(r.scratch); err != nil {
			return o, usagef("--scratch: %w", err)
		}
	}
	for _, text := range r.volumes {
		v, err := run.ParseVolume(text)
		if err != nil {
			return o, usagef("--volume: %w", err)
		}
		o.Volumes = append(o.Volumes, v)
	}
	o.Flags.Logs = true
	o.Flags.Stdin = o.Flags.Stdin || o.Flags.Terminal
	if r.policy != "" {
		if o.Policy, err = a.readLimited(r.policy, podpolicy.MaxBytes); err != nil {
			return o, usagef("--policy: %w", err)
		}
	}
	if r.initdata != "" {
		if o.Initdata, err = a.readLimited(r.initdata, 1<<20); err != nil {
			return o, usagef("--initdata: %w", err)
		}
	}
	if r.trusteeCA != "" {
		if o.TrusteeCA, err = os.ReadFile(r.trusteeCA); err != nil {
			return o, usagef("--trustee-ca: %w", err)
		}
	}
	if o.Image.RootPEMs, o.Image.HostRootPEMs, err = registryCAs(r.registryCA); err != nil {
		return o, err
	}
	if r.registries != "" {
		data, err := a.readLimited(r.registries, registries.MaxBytes)
		if err != nil {
			return o, usagef("--registries-conf: %w", err)
		}
		if o.Image.Registries, err = registries.Parse(data); err != nil {
			return o, usagef("--registries-conf %s: %w", r.registries, err)
		}
	}
	if o.Services, err = r.services.read(); err != nil {
		return o, err
	}
	if r.noCache {
		o.BlobCache = ""
	}
	o.ImagePolicy = r.image
	if r.image != "" && !strings.HasPrefix(r.image, "kbs:///") {
		data, err := a.readLimited(r.image, 1<<20)
		if err != nil {
			return o, usagef("--image-policy: %w", err)
		}
		o.ImagePolicy = string(data)
	}
	if err := o.Check(); err != nil {
		return o, usageError{err}
	}
	return o, nil
}

// memoryMiB reads --memory: MiB, or a number with a suffix.
func memoryMiB(s string) (int, error) {
	if strings.Trim(s, "0123456789") == "" {
		s += "Mi"
	}
	bytes, err := podpolicy.ParseBytes(s)
	if err != nil {
		return 0, usagef("--memory: %w", err)
	}
	return int(bytes >> 20), nil
}

func (a *app) runCommand() *cobra.Command {
	var (
		flags         runFlags
		printPolicy   bool
		printInitdata bool
	)
	c := &cobra.Command{
		Use:   "run [flags] IMAGE [-- CMD…]",
		Short: "Run a container in an attested virtual machine",
		Long: `Run a container in a virtual machine of its own that has proved what it is.

IMAGE is a registry's reference, oci:DIR[:TAG], oci-archive:FILE[:TAG] or
docker-archive:FILE. Without --policy the pod policy is written from the image's configuration and the flags.
Signals are forwarded; a second interrupt ends the machine.

Exit codes: the container's own (128 + n when signal n ended it), 125 when it
did not run, 130 when interrupted before it ran or twice while it ran, 141 when
nobody reads the output any more, 2 for wrong usage.`,
		Args: args(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, positional []string) error {
			o, err := flags.options(a, positional)
			if err != nil {
				return err
			}
			if printPolicy || printInitdata {
				if o.Unsealed || o.Guest.TEE == "none" {
					return usagef("--print-policy and --print-initdata: an unsealed pod has neither; leave out --unsealed and --tee none")
				}
				ctx, stop := notifyInterrupt(c.Context())
				defer stop()
				prepared, err := run.Prepare(ctx, o)
				if err != nil {
					return err
				}
				defer func() { _ = prepared.Close() }()
				out := prepared.Policy
				if printInitdata {
					out = prepared.Initdata.Raw
				}
				_, err = a.env.Stdout.Write(out)
				return err
			}
			o.Stdin, o.Stdout, o.Stderr, o.Logger = a.env.Stdin, a.env.Stdout, a.env.Stderr, a.logger()
			o.JSON = a.json()
			code, err := run.Run(c.Context(), o)
			if err != nil {
				return codedError{err, code}
			}
			if code != 0 {
				return exitCode(code)
			}
			return nil
		},
	}
	flags.add(c)
	c.Flags().SetInterspersed(false)
	c.Flags().BoolVar(&printPolicy, "print-policy", false, "print the policy that would be in force, and do not run")
	c.Flags().BoolVar(&printInitdata, "print-initdata", false, "print the initdata, and do not run")
	c.Flags().BoolVarP(&flags.o.Quiet, "quiet", "q", false, "print nothing but the container's output and errors")
	c.Flags().BoolVar(&flags.o.ShowAppraisal, "show-appraisal", false, "print the trustee's verdicts to standard error")
	return c
}

// environment reads KEY=VALUE and KEY (the caller's value).
func environment(list []string) (map[string]string, error) {
	for i, kv := range list {
		if !strings.Contains(kv, "=") {
			value, ok := os.LookupEnv(kv)
			if !ok {
				return nil, usageError{hint.New(fmt.Errorf("--env %s: there is no such variable in the environment", kv), "give its value as "+kv+"=VALUE")}
			}
			list[i] = kv + "=" + value
		}
	}
	return keyValues("--env", list)
}

func keyValues(flag string, list []string) (map[string]string, error) {
	values := map[string]string{}
	for _, kv := range list {
		key, value, ok := strings.Cut(kv, "=")
		if !ok || key == "" {
			return nil, usagef("%s: expected KEY=VALUE, got %q", flag, key)
		}
		if _, twice := values[key]; twice {
			return nil, usagef("%s: %s is given twice", flag, key)
		}
		values[key] = value
	}
	return values, nil
}

func parseUser(s string) (*podpolicy.User, error) {
	uid, gid, hasGID := strings.Cut(s, ":")
	if !hasGID {
		gid = "0"
	}
	u, uidErr := strconv.ParseUint(uid, 10, 32)
	g, gidErr := strconv.ParseUint(gid, 10, 32)
	if uidErr == nil && gidErr == nil {
		return &podpolicy.User{UID: uint32(u), GID: uint32(g)}, nil
	}
	return nil, usagef("--user: expected UID or UID:GID as numbers, got %q", s)
}

// registryCAs reads the values of --registry-ca: FILE or HOST[:PORT]=FILE.
func registryCAs(values []string) (roots []string, hosts map[string]string, err error) {
	for _, v := range values {
		host, file, forHost := strings.Cut(v, "=")
		if !forHost {
			file = v
		}
		text, err := readFiles("--registry-ca", []string{file})
		if err != nil {
			return nil, nil, err
		}
		if !forHost {
			roots = append(roots, text...)
			continue
		}
		if hosts == nil {
			hosts = map[string]string{}
		}
		hosts[host] += text[0]
	}
	return roots, hosts, nil
}

func readFiles(flag string, paths []string) ([]string, error) {
	var contents []string
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			return nil, usagef("%s: %w", flag, err)
		}
		contents = append(contents, string(data))
	}
	return contents, nil
}
