package podpolicy_test

import (
	"strings"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
)

// copying runs a container that files may be copied out of and into.
func copying(t *testing.T) *podpolicy.Guard {
	t.Helper()
	p := simplePolicy()
	p.Containers[0].Cwd = "/data"
	p.Containers[0].Allow.Copy = podpolicy.Copy{From: []string{"/data", "/var/log/app"}, To: []string{"/upload"}}
	g := podpolicy.NewGuard(p)
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
	start(t, g, podpolicy.ContainerProposal{ID: "c", Name: "one"}, podpolicy.ImageConfig{Digest: webDigest})
	return g
}

// The commands are those of kubectl cp (k8s.io/kubectl, pkg/cmd/cp/cp.go).
func TestCopyCommands(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args          []string
		output, stdin bool
	}{
		{[]string{"tar", "cf", "-", "/data"}, true, false},
		{[]string{"tar", "cf", "-", "/data/"}, true, false},
		{[]string{"tar", "cf", "-", "/data/."}, true, false},
		{[]string{"tar", "cf", "-", "/data/a b/$(x);`y`"}, true, false}, // no shell reads it
		{[]string{"tar", "cf", "-", "/data/-rf"}, true, false},
		{[]string{"tar", "cf", "-", "/var/log/app/today.log"}, true, false},
		{[]string{"tar", "cf", "-", "/data/..hidden"}, true, false},
		{[]string{"sh", "-c", "tar cf - /data/big.bin | tail -c+0"}, true, false},
		{[]string{"sh", "-c", "tar cf - /data/big.bin | tail -c+1048577"}, true, false},
		{[]string{"sh", "-c", "tar cf - '/data/big.bin' | tail -c+0"}, true, false},
		{[]string{"sh", "-c", "tar cf - '/data/a b;$(id)' | tail -c+7"}, true, false}, // quoted
		{[]string{"sh", "-c", `tar cf - '/data/it'\''s' | tail -c+7`}, true, false},
		{[]string{"test", "-d", "/upload"}, false, false},
		{[]string{"test", "-d", "/upload/new"}, false, false},
		{[]string{"tar", "-xmf", "-", "-C", "/upload"}, false, true},
		{[]string{"tar", "-xmf", "-", "-C", "/upload/sub/"}, false, true},
		{[]string{"tar", "--no-same-permissions", "--no-same-owner", "-xmf", "-", "-C", "/upload"}, false, true},
	} {
		g := copying(t)
		e, err := g.Exec("c", podpolicy.ExecProposal{ID: "e", Args: tt.args, Stdin: tt.stdin})
		if err != nil {
			t.Errorf("%q: %v", tt.args, err)
			continue
		}
		if strings.Join(e.Args, "\x00") != strings.Join(tt.args, "\x00") || e.Output != tt.output || e.Stdin != tt.stdin || e.Terminal {
			t.Errorf("%q became %+v", tt.args, e)
		}
		ok(t, g.Started("c", "e"))
		if out, in := g.Stream("c", "e", podpolicy.Stdout), g.Stream("c", "e", podpolicy.Stdin); out != tt.output || in != tt.stdin {
			t.Errorf("%q: output %t, input %t", tt.args, out, in)
		}
		if g.Stream("c", "e", podpolicy.Stderr) != tt.output {
			t.Errorf("%q: standard error is not as standard output", tt.args)
		}
		// More than the command needs is refused.
		_, err = g.Exec("c", podpolicy.ExecProposal{ID: "f", Args: tt.args, Terminal: true})
		refused(t, err, podpolicy.RuleExecTerminal, "terminal")
		if !tt.stdin {
			_, err = g.Exec("c", podpolicy.ExecProposal{ID: "f", Args: tt.args, Stdin: true})
			refused(t, err, podpolicy.RuleExecStdin, "stdin")
		}
	}
}

// Hole 3 and GHSA-rh99-wc69-c255 for kubectl cp: no path leaves an allowed
// directory, by .., by a prefix that is not a directory, by an option or by a
// shell, and no other command of tar runs.
func TestHole03CopyKeepsToItsDirectories(t *testing.T) {
	t.Parallel()
	g := copying(t)
	for _, args := range [][]string{
		{"tar", "cf", "-", "/data/../etc/shadow"}, {"tar", "cf", "-", "/data/.."}, {"tar", "cf", "-", "/data/../data"}, {"tar", "cf", "-", ".."},
		{"tar", "cf", "-", "/"}, {"tar", "cf", "-", "/database"}, {"tar", "cf", "-", "/var/log"}, {"tar", "cf", "-", "//etc"}, {"tar", "cf", "-", ""},
		{"tar", "cf", "-", "data"}, {"tar", "cf", "-", "."}, {"tar", "cf", "-", "--checkpoint-action=exec=sh"}, {"tar", "cf", "-", "/data\n/etc"}, {"tar", "cf", "-", "/data/\xff"},
		{"tar", "cf", "-", "/data", "/etc"}, {"tar", "cf", "-", "-C", "/data"}, {"tar", "cf", "/data/x", "/data"}, {"tar", "czf", "-", "/data"}, {"tar", "cf", "-"},
		{"tar", "cf", "-", "/upload"}, {"tar", "-xmf", "-", "-C", "/data"}, {"test", "-d", "/data"},
		{"tar", "-xmf", "-"}, {"tar", "-xmf", "-", "-C", "/upload/.."}, {"tar", "-xmf", "-", "-C", "/upload", "-P"}, {"tar", "-xPmf", "-", "-C", "/upload"},
		{"tar", "-xmf", "-", "-C", "upload"}, {"tar", "-xmf", "-", "-C", "."}, {"tar", "-xmf", "-", "-C", "/uploads"}, {"tar", "-xmf", "/upload/x", "-C", "/upload"},
		{"tar", "--to-command=sh", "-xmf", "-", "-C", "/upload"}, {"tar", "--no-same-owner", "-xmf", "-", "-C", "/upload"},
		{"test", "-f", "/upload"}, {"test", "-d", "/upload", "-o", "-f", "/etc/shadow"}, {"test", "-d", "/etc"},
		{"sh", "-c", "tar cf - /etc | tail -c+0"}, {"sh", "-c", "tar cf - /data;id | tail -c+0"}, {"sh", "-c", "tar cf - /data/$(id) | tail -c+0"},
		{"sh", "-c", "tar cf - /data/a b | tail -c+0"}, {"sh", "-c", "tar cf - /data | tail -c+0;id"}, {"sh", "-c", "tar cf - /data | tail -c+-1"},
		{"sh", "-c", "tar cf - /data | tail -c+"}, {"sh", "-c", "tar cf - /data | tail -c+99999999999999999999"}, {"sh", "-c", "tar cf - /data/../etc | tail -c+0"},
		{"sh", "-c", "tar cf - /data/* | tail -c+0"}, {"sh", "-c", "tar cf - /data | tail -c+0 | tail -c+0"}, {"sh", "-c", "tar cf - -C/ | tail -c+0"}, {"sh", "-c", "tar cf - /data | tail -c+1", "x"},
		{"sh", "-c", "tar cf - '/data';id' | tail -c+0"}, {"sh", "-c", "tar cf - '/data' '/etc' | tail -c+0"}, {"sh", "-c", "tar cf - '/etc' | tail -c+0"},
		{"sh", "-c", "tar cf - '/data/../etc' | tail -c+0"}, {"sh", "-c", "tar cf - '/data''/../../etc' | tail -c+0"}, {"sh", "-c", `tar cf - '/data'\'' | tail -c+0`},
		{"sh", "-c", "tar cf - ' | tail -c+0"}, {"sh", "-c", "tar cf - '/data' | tail -c+0 | tail -c+0"}, {"sh", "-c", "tar cf - '/data\n' | tail -c+0"}, {"sh", "-c", `tar cf - '/data\'' | tail -c+0`},
		{"/bin/tar", "cf", "-", "/data"}, {"tar", "cf", "-", "/data/" + strings.Repeat("x", 1024)}, {"TAR", "cf", "-", "/data"},
	} {
		_, err := g.Exec("c", podpolicy.ExecProposal{ID: "e", Args: args})
		refused(t, err, podpolicy.RuleExecArgs, "args")
	}
	// Without the rule there is none of it.
	g = podpolicy.NewGuard(simplePolicy())
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
	start(t, g, podpolicy.ContainerProposal{ID: "c", Name: "one"}, podpolicy.ImageConfig{Digest: webDigest})
	for _, args := range [][]string{{"tar", "cf", "-", "/data"}, {"tar", "-xmf", "-", "-C", "/"}, {"test", "-d", "/"}} {
		_, err := g.Exec("c", podpolicy.ExecProposal{ID: "e", Args: args})
		refused(t, err, podpolicy.RuleExecArgs, "args")
	}
}
