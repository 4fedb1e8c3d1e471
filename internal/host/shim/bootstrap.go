package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	bootstrapapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	// stdinLimit bounds what containerd may write: options of a runtime.
	stdinLimit = 1 << 20
	// taskVersion is the newest Task service that is served.
	taskVersion = 3
	// firstJSON is the first version of the Task service that is announced in
	// JSON: containerd/containerd v1.7 runtime/v2/shim.go.
	firstJSON = 2
)

// Environment variables of containerd: containerd/containerd v2.4.2
// core/runtime/v2/command.go, v1.6.20 runtime/v2/shim/util.go.
const (
	envTTRPCAddress = "TTRPC_ADDRESS"
	envMaxVersion   = "MAX_SHIM_VERSION"
	envSchedCore    = "SCHED_CORE"
)

// request is what a containerd asks of `start`, however it asks.
type request struct {
	// dialect is how it wants the answer.
	dialect dialect
	// maxVersion of the Task service that it can talk to.
	maxVersion int
	// config is the configuration's path from the runtime's options.
	config string
	// shimCgroup is where the daemon goes; empty for where containerd is.
	shimCgroup string
	// ttrpcAddress and socketDir may be empty.
	ttrpcAddress, socketDir string
	debug                   bool
}

// dialect is a way to answer `start`.
type dialect int

const (
	// dialectText is an address and nothing else: containerd 1.6.
	dialectText dialect = iota
	// dialectJSON is an object with version, address and protocol: 1.7 to 2.2,
	// which say in MAX_SHIM_VERSION what they understand.
	dialectJSON
	// dialectBootstrap is a BootstrapResult: 2.3 and newer, which write
	// BootstrapParams to standard input.
	dialectBootstrap
)

func (d dialect) String() string {
	return [...]string{"text", "json", "bootstrap"}[d]
}

// readRequest finds out how containerd asks. Until 2.2 standard input holds
// the runtime's options, or nothing; from 2.3 on it holds parameters, which
// name the same container as the command line does. The two cannot be taken
// for each other: the first field of the one is a type's name, of the other
// the container's.
func readRequest(stdin io.Reader, getenv func(string) string, f flags) (request, error) {
	r := request{debug: f.debug, ttrpcAddress: getenv(envTTRPCAddress)}
	input, err := io.ReadAll(io.LimitReader(stdin, stdinLimit+1))
	if err != nil {
		return r, fmt.Errorf("standard input: %w", err)
	}
	if len(input) > stdinLimit {
		return r, fmt.Errorf("standard input: expected at most %d bytes, got more", stdinLimit)
	}
	var params bootstrapapi.BootstrapParams
	if len(input) > 0 && proto.Unmarshal(input, &params) == nil && params.GetInstanceID() == f.id && params.GetNamespace() == f.namespace {
		r.dialect, r.maxVersion = dialectBootstrap, taskVersion
		return r, r.params(&params)
	}
	if v := getenv(envMaxVersion); v != "" {
		if r.maxVersion, err = strconv.Atoi(v); err != nil || r.maxVersion < firstJSON {
			return r, fmt.Errorf("%s: expected a number from %d, got %q", envMaxVersion, firstJSON, v)
		}
		r.dialect = dialectJSON
	}
	if len(input) == 0 {
		return r, nil
	}
	var options anypb.Any
	if err := proto.Unmarshal(input, &options); err != nil {
		return r, fmt.Errorf("standard input: expected options or bootstrap parameters: %w", err)
	}
	return r, r.options(&options)
}

func (r *request) params(p *bootstrapapi.BootstrapParams) error {
	if a := p.GetContainerdTtrpcAddress(); a != "" {
		r.ttrpcAddress = a
	}
	r.socketDir = p.GetSocketDir()
	r.debug = r.debug || p.GetLogLevel() <= bootstrapapi.LogLevel_LOG_LEVEL_DEBUG
	var problems []error
	for _, e := range p.GetExtensions() {
		problems = append(problems, r.options(e.GetValue()))
	}
	return errors.Join(problems...)
}

// options takes what is ours from a runtime's options. Other types are for
// other runtimes.
func (r *request) options(any *anypb.Any) error {
	config, cgroup, err := readOptions(any)
	if err != nil {
		return err
	}
	if config != "" {
		r.config = config
	}
	if cgroup != "" {
		r.shimCgroup = cgroup
	}
	return nil
}

// readOptions reads the options of a runtime handler: its configuration's path
// and the shim's cgroup.
func readOptions(any *anypb.Any) (config, cgroup string, err error) {
	var generic runtimeoptions.Options
	if any.MessageIs(&generic) {
		if err := any.UnmarshalTo(&generic); err != nil {
			return "", "", fmt.Errorf("runtime options: %w", err)
		}
		if generic.GetConfigPath() == "" && len(generic.GetConfigBody()) > 0 {
			return "", "", errors.New("runtime options: expected ConfigPath, the path of a configuration file, and nothing else; " +
				"correct the handler's options in containerd's configuration")
		}
		return generic.GetConfigPath(), "", nil
	}
	var runc runcoptions.Options
	if any.MessageIs(&runc) {
		if err := any.UnmarshalTo(&runc); err != nil {
			return "", "", fmt.Errorf("runtime options: %w", err)
		}
		return "", runc.GetShimCgroup(), nil
	}
	return "", "", nil
}

// answer is what `start` prints.
func (r request) answer(address string) ([]byte, error) {
	version := min(taskVersion, r.maxVersion)
	switch r.dialect {
	case dialectText:
		return []byte(address), nil
	case dialectJSON:
		return json.Marshal(struct {
			Version  int    `json:"version"`
			Address  string `json:"address"`
			Protocol string `json:"protocol"`
		}{version, address, "ttrpc"})
	default:
		return proto.Marshal(&bootstrapapi.BootstrapResult{Version: int32(version), Address: address, Protocol: "ttrpc"})
	}
}
