package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestStorage runs a pod whose image, root file system and ephemeral volume lie on
// a scratch disk, and whose block volume outlives it: encrypted, with a key that
// the trustee gives to this pod.
func TestStorage(t *testing.T) {
	s := need(t)
	t.Parallel()
	r := s.registryFor(t)
	image, ca := s.pushPlain(t, r, "storage"), []string{"--registry-ca", r.ca}
	state := t.TempDir()
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	s.hide("volume key", string(key))
	s.program(t, state, "coffer", "trustee", "secret", "set", "kbs:///shop/volumes/data", write(t, "key", key)).expect(0)

	const script = `
awk '$2 == "/tmp/v" || $2 == "/data" {print $2, $3, $4}' /proc/mounts | sed 's/,.*//'
[ -s /data/kept ] && cat /data/kept || echo "nothing kept"
echo plaintext-marker > /data/kept
head -c 3000000 /dev/zero > /tmp/v/large || echo "bounded"
df -k /tmp/v | tail -1 | awk '{print "size", $2}'
head -c 40000000 /dev/zero > /large && echo "root has room"
`
	printed, _ := s.run(t, "", append(ca, "--print-policy", "--user", "0:0", image, "--", script)...).expect(0)
	var policy map[string]any
	if err := json.Unmarshal([]byte(printed), &policy); err != nil {
		t.Fatal(err)
	}
	policy["volumes"] = map[string]any{
		"data": map[string]any{"kind": "block", "key": "kbs:///shop/volumes/data", "filesystem": "ext4"},
		"tmp":  map[string]any{"kind": "ephemeral", "size": "2Mi"},
	}
	policy["containers"].([]any)[0].(map[string]any)["mounts"] = []any{
		map[string]any{"path": "/data", "volume": "data"}, map[string]any{"path": "/tmp/v", "volume": "tmp"},
	}
	out, err := json.Marshal(policy)
	if err != nil {
		t.Fatal(err)
	}
	file := write(t, "policy.json", out)
	disk, tmp := filepath.Join(t.TempDir(), "data.img"), t.TempDir()
	flags := append(ca, "--debug", "--policy", file, "--scratch", "512Mi", "--memory", "384", "--volume", "data="+disk+":64Mi", image)
	for i, kept := range []string{"nothing kept\n", "plaintext-marker\n"} {
		c := s.run(t, state, flags...)
		c.cmd.Env = append(c.cmd.Environ(), "TMPDIR="+tmp)
		stdout, stderr := c.expect(0)
		contains(t, "stdout", stdout, "/data ext4 rw\n", "/tmp/v ext4 rw\n", kept, "bounded\n", "size 2048\n", "root has room\n")
		if i == 0 && strings.Contains(stdout, "plaintext") {
			t.Errorf("a new volume has content:\n%s", stdout)
		}
		s.checkSecrets(t, "coffer run", stdout+stderr)
	}
	if entries, err := os.ReadDir(tmp); err != nil || len(entries) != 0 {
		t.Errorf("left of the scratch disk: %v, %v", entries, err)
	}
	raw, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(raw, []byte("plaintext-marker")) || bytes.Contains(raw, key) || !bytes.HasPrefix(raw, []byte("LUKS\xba\xbe")) {
		t.Error("the disk is not encrypted")
	}

	with := func(image, disk string) []string {
		return append(ca, "--policy", file, "--scratch", "512Mi", "--memory", "384", "--volume", "data="+disk, image)
	}
	t.Run("altered", func(t *testing.T) {
		altered := bytes.Clone(raw)
		for i := 16<<20 + 64<<10; i < len(altered); i += 4096 {
			altered[i+100] ^= 1
		}
		other := write(t, "altered.img", altered)
		stdout, stderr := s.run(t, state, with(image, other)...).expect(125)
		if stdout != "" {
			t.Errorf("expected no output, got %q", stdout)
		}
		contains(t, "stderr", stderr, "volume data")
	})
	t.Run("foreign", func(t *testing.T) {
		foreign := make([]byte, 64<<20)
		copy(foreign[5<<20:], "somebody's data")
		other := write(t, "foreign.img", foreign)
		_, stderr := s.run(t, state, with(image, other)...).expect(125)
		contains(t, "stderr", stderr, "volume.disk", "nothing was written to the disk")
		if again, err := os.ReadFile(other); err != nil || !bytes.Equal(again, foreign) {
			t.Errorf("the disk was written: %v", err)
		}
	})
	t.Run("another key", func(t *testing.T) {
		other := bytes.Repeat([]byte{7}, 32)
		s.program(t, state, "coffer", "trustee", "secret", "set", "kbs:///shop/volumes/data", write(t, "key", []byte(hex.EncodeToString(other)))).expect(0)
		_, stderr := s.run(t, state, flags...).expect(125)
		contains(t, "stderr", stderr, "the key does not open this volume", "nothing was written to the disk")
		if again, err := os.ReadFile(disk); err != nil || !bytes.Equal(again, raw) {
			t.Errorf("the disk was written: %v", err)
		}
	})
	t.Run("no disk", func(t *testing.T) {
		_, stderr := s.run(t, state, append(ca, "--policy", file, image)...).expect(125)
		contains(t, "stderr", stderr, "volume data of the policy is a block volume", "--volume data=FILE:SIZE")
	})
}
