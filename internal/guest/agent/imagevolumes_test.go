package agent_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/guest/guesttest"
	"github.com/coffer-project/coffer/oci"
)

// declares is a set of volumes.
func declares(paths ...string) oci.ContainerConfig {
	c := oci.ContainerConfig{Volumes: map[string]struct{}{}}
	for _, p := range paths {
		c.Volumes[p] = struct{}{}
	}
	return c
}

// A container whose root is read-only writes the volumes that its image declares,
// which have what the image has there, and nothing else.
func TestImageVolumes(t *testing.T) {
	w, h := unsealed(t)
	root := guesttest.Rootfs(t)
	err := errors.Join(
		os.MkdirAll(filepath.Join(root, "data/sub"), 0o750), os.WriteFile(filepath.Join(root, "data/seed"), []byte("seed\n"), 0o640),
		os.Mkdir(filepath.Join(root, "run"), 0o755), os.Mkdir(filepath.Join(root, "var"), 0o755),
		// As in many images: absolute, and it stays in the image.
		os.Symlink("/run", filepath.Join(root, "var/run")), os.WriteFile(filepath.Join(root, "file"), nil, 0o644),
		os.Symlink("../../../../../../../../tmp", filepath.Join(root, "up")),
	)
	if err != nil {
		t.Fatal(err)
	}
	image := w.build(root, declares("/data", "/data/sub", "/var/run/app", "made/here/", "/up", "/", "/proc/x", "/dev/shm", "/mine/below"))
	shell := func(id string, readOnly bool, script string) *agentapi.CreateContainerRequest {
		req := w.shell(id, script)
		req.Image = repository + "@" + string(image.Digest)
		req.Security = &agentapi.Security{ReadOnlyRoot: readOnly}
		req.Volumes = []*agentapi.Volume{{Name: "mine", Kind: agentapi.Volume_EPHEMERAL}}
		req.Mounts = []*agentapi.Mount{{Path: "/mine", Volume: "mine"}}
		return req
	}
	const script = `cat /data/seed; ls -ld /data | { read mode _; echo $mode; }
for d in / /bin /etc /data /data/sub /run /run/app /var/run/app /made /made/here /tmp /mine /mine/below; do (echo x >$d/x) 2>/dev/null && echo writes $d; done; true`
	for id, want := range map[string]string{
		"ro": "writes /data\nwrites /data/sub\nwrites /run/app\nwrites /var/run/app\nwrites /made/here\nwrites /tmp\nwrites /mine\n",
		"rw": "writes /\nwrites /bin\nwrites /etc\nwrites /data\nwrites /data/sub\nwrites /run\nwrites /run/app\nwrites /var/run/app\nwrites /made\nwrites /made/here\nwrites /tmp\nwrites /mine\n",
	} {
		if got, code := h.script(shell(id, id == "ro", script)); code != 0 || got != "seed\ndrwxr-x---\n"+want {
			t.Errorf("%s: %d\n%s", id, code, got)
		}
	}
	// Each container has its own.
	if got, _ := h.script(shell("other", true, "ls /data /tmp")); strings.Contains(got, "x") {
		t.Errorf("the other container has\n%s", got)
	}
	// What cannot be a directory is an error only where it would be missed.
	image = w.build(root, declares("/file"))
	if _, code := h.script(shell("spare", false, "true")); code != 0 {
		t.Errorf("ended with %d", code)
	}
	if _, err := h.CreateContainer(t.Context(), shell("bad", true, "true")); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "volume /file of the image") {
		t.Errorf("a file as a volume: %v", err)
	}
	var many []string
	for i := range 65 {
		many = append(many, fmt.Sprint("/v", i))
	}
	image = w.build(root, declares(many...))
	if _, err := h.CreateContainer(t.Context(), shell("many", true, "true")); err == nil || !strings.Contains(err.Error(), "at most 64") {
		t.Errorf("many volumes: %v", err)
	}
}
