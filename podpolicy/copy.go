package podpolicy

import (
	"path"
	"slices"
	"strings"
)

// copyCommand judges one of the commands by which kubectl cp copies files: those
// of kubectl 1.28 to 1.36 (k8s.io/kubectl, pkg/cmd/cp, as of
// kubernetes/kubernetes@01aa0f3). The rule it returns holds the command as it
// was sent, since its only open part, the path, has been judged.
func copyCommand(c Copy, args []string) (ExecRule, bool) {
	if len(args) < 3 {
		return ExecRule{}, false
	}
	head, last := args[:len(args)-1], args[len(args)-1]
	switch {
	case slices.Equal(head, []string{"tar", "cf", "-"}):
		return ExecRule{Args: args, Output: true}, allowsPath(c.From, last)
	case slices.Equal(head, []string{"sh", "-c"}):
		return ExecRule{Args: args, Output: true}, allowsResume(c.From, last)
	case slices.Equal(head, []string{"test", "-d"}):
		return ExecRule{Args: args}, allowsPath(c.To, last)
	case slices.Equal(head, []string{"tar", "-xmf", "-", "-C"}),
		slices.Equal(head, []string{"tar", "--no-same-permissions", "--no-same-owner", "-xmf", "-", "-C"}):
		return ExecRule{Args: args, Stdin: true}, allowsPath(c.To, last)
	}
	return ExecRule{}, false
}

// allowsPath: absolute, so that it is no option and does not depend on a
// working directory; without .., since what comes before may be a link; and one
// of dirs or below one.
func allowsPath(dirs []string, p string) bool {
	if !strings.HasPrefix(p, "/") || len(p) > maxPath || !printable(p) || slices.Contains(strings.Split(p, "/"), "..") {
		return false
	}
	p = path.Clean(p)
	return slices.ContainsFunc(dirs, func(dir string) bool {
		return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
	})
}

// allowsResume reads the script by which kubectl cp --retries goes on where it
// was cut off. The path in it is not quoted, so it must mean itself to a shell.
func allowsResume(dirs []string, script string) bool {
	rest, ok := strings.CutPrefix(script, "tar cf - ")
	p, count, cut := strings.Cut(rest, " | tail -c+")
	n, err := parseDigits(count)
	return ok && cut && err == nil && n <= 1<<62 && only(p, alnum+"/._-+@%,:=") && allowsPath(dirs, p)
}
