package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"
)

func sha256Hex(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// pushPlain pushes the image as it is, and returns its name.
func (s *suite) pushPlain(t *testing.T, r *registryServer, tag string) string {
	t.Helper()
	signKey, _ := signingKey(t, r)
	pushed, _ := s.program(t, "", "coffer", "image", "protect", s.local(t).layout, r.host()+"/public/plain:"+tag, "--registry-ca", r.ca, "--sign-key", signKey).expect(0)
	return strings.TrimSpace(pushed)
}

// edit changes a policy document.
func edit(t *testing.T, document string, change func(container map[string]any)) string {
	t.Helper()
	var policy map[string]any
	if err := json.Unmarshal([]byte(document), &policy); err != nil {
		t.Fatal(err)
	}
	change(policy["containers"].([]any)[0].(map[string]any))
	out, err := json.Marshal(policy)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, "policy.json", out)
}

// TestPolicy runs with policies that were printed and edited.
func TestPolicy(t *testing.T) {
	s := need(t)
	t.Parallel()
	r := s.registryFor(t)
	image, ca := s.pushPlain(t, r, "policy"), []string{"--registry-ca", r.ca}
	printed, _ := s.run(t, "", append(ca, "--print-policy", "--env", "ADDED=1", image, "--", "echo $ADDED")...).expect(0)
	again, _ := s.run(t, "", append(ca, "--print-policy", "--env", "ADDED=1", image, "--", "echo $ADDED")...).expect(0)
	if printed != again {
		t.Errorf("the same pod has different policies:\n%s\n%s", printed, again)
	}
	t.Run("edited", func(t *testing.T) {
		t.Parallel()
		file := edit(t, printed, func(c map[string]any) { c["args"] = []string{"/bin/sh", "-c", "echo from the policy $ADDED"} })
		stdout, _ := s.run(t, "", append(ca, "-q", "--policy", file, image)...).expect(0)
		if want := "from the policy 1\n"; stdout != want {
			t.Errorf("expected %q, got %q", want, stdout)
		}
	})
	t.Run("no logs", func(t *testing.T) {
		t.Parallel()
		file := edit(t, printed, func(c map[string]any) {
			c["allow"] = map[string]any{}
			c["args"] = []string{"/bin/sh", "-c", "echo secret; echo secret >&2; exit 4"}
		})
		stdout, stderr := s.run(t, "", append(ca, "-q", "--policy", file, image)...).expect(4)
		if stdout+stderr != "" {
			t.Errorf("expected no output, got %q and %q", stdout, stderr)
		}
	})
	t.Run("terminal", func(t *testing.T) {
		t.Parallel()
		file := edit(t, printed, func(c map[string]any) { c["terminal"] = true })
		stdout, stderr := s.run(t, "", append(ca, "--policy", file, image)...).expect(125)
		if stdout != "" {
			t.Errorf("expected no output, got %q", stdout)
		}
		contains(t, "stderr", stderr, "refused (rule container.terminal)")
	})
	t.Run("another image", func(t *testing.T) {
		t.Parallel()
		file := edit(t, printed, func(c map[string]any) {
			c["image"].(map[string]any)["digest"] = "sha256:" + strings.Repeat("0", 64)
		})
		_, stderr := s.run(t, "", append(ca, "--policy", file, image)...).expect(125)
		contains(t, "stderr", stderr, "the policy has no container with the image", "hint: ")
	})
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		file := edit(t, printed, func(c map[string]any) {
			c["limits"] = map[string]any{"memory": "32Mi"}
			c["args"] = []string{"/bin/tail", "/dev/zero"}
		})
		_, stderr := s.run(t, "", append(ca, "--policy", file, image)...).expect(137)
		contains(t, "stderr", stderr, "ended for want of memory", "limits.memory")
	})
}

// TestMachineMemory uses up the whole machine's memory: the container dies of
// it, the agent does not.
func TestMachineMemory(t *testing.T) {
	s := need(t)
	t.Parallel()
	_, stderr := s.run(t, "", "--memory", "256", s.local(t).layout, "--", "exec tail /dev/zero").expect(137)
	contains(t, "stderr", stderr, "ended for want of memory", "--memory, now 256 MiB")
}
