package podpolicy

import (
	"path"
	"slices"
	"strings"
)

// copyCommand judges one of the commands by which kubectl cp copies files: those
// of kubectl 1.28 to 1.36 (kubernetes/kubectl, pkg/cmd/cp/cp.go on the branches
// release-1.28 at 1e4d352 to release-1.36 at 58802ae). The rule it returns holds the command as it
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
// was cut off. Up to 1.33 the path in it is not quoted, so it must mean itself to
// a shell; since 1.34 it stands in single quotes, as sh reads them.
func allowsResume(dirs []string, script string) bool {
	const tail = " | tail -c+"
	rest, ok := strings.CutPrefix(script, "tar cf - ")
	i := strings.LastIndex(rest, tail)
	if !ok || i < 0 {
		return false
	}
	p, count := rest[:i], rest[i+len(tail):]
	if n, err := parseDigits(count); err != nil || n > 1<<62 {
		return false
	}
	if len(p) >= 2 && p[0] == '\'' && p[len(p)-1] == '\'' {
		const escaped = `'\''`
		quoted := p[1 : len(p)-1]
		p = strings.ReplaceAll(quoted, escaped, "'")
		return strings.ReplaceAll(p, "'", escaped) == quoted && allowsPath(dirs, p)
	}
	return only(p, alnum+"/._-+@%,:=") && allowsPath(dirs, p)
}
