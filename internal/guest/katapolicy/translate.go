//go:build kata_policy

package katapolicy

import (
	"fmt"
	"path"

	"github.com/coffer-project/coffer/podpolicy"
)

// object is an input or a part of one.
type object = map[string]any

// request is one request of Kata's protocol.
type request struct {
	name  string
	input object
}

func one(name string, input object) []request { return []request{{name, input}} }

// translate says a question in the words of Kata's protocol. What Kata's agent
// has no request for is denied.
func translate(q podpolicy.Question) ([]request, error) {
	process := object{"container_id": q.Container, "exec_id": q.Exec}
	switch q.Kind {
	case podpolicy.AskSandbox:
		return append(one("CreateSandboxRequest", sandboxInput(q)), network(&q.Sandbox.Network)...), nil
	case podpolicy.AskNetwork:
		return network(q.Network), nil
	case podpolicy.AskContainer:
		return one("CreateContainerRequest", containerInput(q)), nil
	case podpolicy.AskStart:
		return one("StartContainerRequest", object{"container_id": q.Container}), nil
	case podpolicy.AskExec:
		process["string_user"] = nil
		process["process"] = commandInput(q.Command)
		return one("ExecProcessRequest", process), nil
	case podpolicy.AskSignal:
		process["signal"] = q.Signal
		return one("SignalProcessRequest", process), nil
	case podpolicy.AskResize:
		process["row"], process["column"] = 0, 0 // the size says nothing
		return one("TtyWinResizeRequest", process), nil
	case podpolicy.AskUpdate:
		return one("UpdateContainerRequest", object{"container_id": q.Container, "resources": resources(*q.Limits)}), nil
	case podpolicy.AskStream:
		if q.Stream == podpolicy.Stdin {
			process["data"] = []int{} // what is written is not for a policy to see
			return one("WriteStreamRequest", process), nil
		}
		process["len"] = 0
		return one("ReadStreamRequest", process), nil
	case podpolicy.AskFile:
		return one("CopyFileRequest", fileInput(q)), nil
	case podpolicy.AskDelete:
		if q.Exec != "" {
			return nil, nil // Kata forgets a command when it has been waited for
		}
		return one("RemoveContainerRequest", object{"container_id": q.Container, "timeout": 0}), nil
	case podpolicy.AskWait:
		return one("WaitProcessRequest", process), nil
	case podpolicy.AskStats:
		return one("StatsContainerRequest", object{"container_id": q.Container}), nil
	case podpolicy.AskCloseStdin:
		return one("CloseStdinRequest", process), nil
	case podpolicy.AskShutdown:
		return one("DestroySandboxRequest", object{}), nil
	case podpolicy.AskAttach, podpolicy.AskPortForward:
	}
	return nil, fmt.Errorf("a policy for Kata's agent has no request for %q: write a pod policy", q.Kind)
}

func sandboxInput(q podpolicy.Question) object {
	return object{
		"sandbox_id": q.SandboxID, "hostname": q.Sandbox.Hostname, "dns": list(q.Sandbox.Network.DNS.Servers), "sandbox_pidns": q.Sandbox.SharePID,
		"storages": []any{}, "guest_hook_path": "", "kernel_modules": []any{},
	}
}

// file types and modes of stat(2), as Kata's requests have them.
const (
	regular     = 0o100000
	sharedFiles = "/run/kata-containers/shared/containers"
)

func fileInput(q podpolicy.Question) object {
	return object{
		"path": path.Join(sharedFiles, q.Volume, q.File), "file_type": "Regular", "symlink_target": nil,
		"file_size": q.Size, "file_mode": regular | q.Mode, "dir_mode": 0o755, "uid": 0, "gid": 0, "offset": 0,
	}
}

// resources are OCI's, with Kata's names.
func resources(r podpolicy.Resources) object {
	const period = 100_000 // microseconds
	out := object{"Devices": []any{}, "Memory": nil, "CPU": nil, "Pids": nil, "BlockIO": nil, "HugepageLimits": []any{}, "Network": nil}
	if r.MemoryBytes != 0 {
		out["Memory"] = object{"Limit": r.MemoryBytes}
	}
	if r.CPUMillis != 0 {
		out["CPU"] = object{"Quota": uint64(r.CPUMillis) * period / 1000, "Period": period}
	}
	if r.PIDs != 0 {
		out["Pids"] = object{"Limit": r.PIDs}
	}
	return out
}

func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
