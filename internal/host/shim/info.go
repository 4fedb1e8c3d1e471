package shim

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"

	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// featuresURL is the type of OCI features in an Any; the value is JSON:
// containerd/containerd v2 registers it so in core/runtime/typeurl.go.
const featuresURL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"

func (p Program) printVersion(proc Process) error {
	_, err := fmt.Fprintf(proc.Stdout, "%s:\n  Version:    %s\n  Go version: %s\n", p.Name, p.Version, runtime.Version())
	return err
}

// printInfo prints a RuntimeInfo for the options on standard input. An option
// that `start` would refuse is refused here.
func (p Program) printInfo(proc Process) error {
	input, err := io.ReadAll(io.LimitReader(proc.Stdin, stdinLimit+1))
	if err != nil {
		return fmt.Errorf("standard input: %w", err)
	}
	if len(input) > stdinLimit {
		return fmt.Errorf("standard input: expected at most %d bytes, got more", stdinLimit)
	}
	info := &types.RuntimeInfo{Name: p.Name, Version: &types.RuntimeVersion{Version: p.Version}}
	if len(input) > 0 {
		var options anypb.Any
		if err := proto.Unmarshal(input, &options); err != nil {
			return fmt.Errorf("standard input: expected runtime options: %w", err)
		}
		config, _, err := readOptions(&options)
		if err != nil {
			return err
		}
		if _, err := p.Configure(config); err != nil {
			return err
		}
		info.Options = &options
	}
	if info.Features, err = runtimeFeatures(); err != nil {
		return err
	}
	out, err := proto.Marshal(info)
	if err != nil {
		return err
	}
	_, err = proc.Stdout.Write(out)
	return err
}

// runtimeFeatures are those of containers in the guest. What is left out is
// refused by the kubelet before a pod is made: user namespaces of the host
// (containers have their own machine) and recursive read-only mounts.
func runtimeFeatures() (*anypb.Any, error) {
	no, yes := false, true
	f := &features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: "1.3.0",
		MountOptions:  []string{"ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "bind", "rbind"},
		Linux: &features.Linux{
			Namespaces:      []string{"cgroup", "ipc", "mount", "network", "pid", "uts"},
			Seccomp:         &features.Seccomp{Enabled: &yes},
			Apparmor:        &features.Apparmor{Enabled: &no},
			Selinux:         &features.Selinux{Enabled: &no},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &no}},
		},
	}
	data, err := json.Marshal(f)
	if err != nil {
		return nil, fmt.Errorf("features: %w", err)
	}
	return &anypb.Any{TypeUrl: featuresURL, Value: data}, nil
}
