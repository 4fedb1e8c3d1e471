package podpolicy

import (
	"fmt"
	"strings"
)

// Expand replaces $(NAME) in s by what lookup has for NAME, and $$ by a dollar
// sign. A reference that lookup does not know stays as it is written, and so
// does every other dollar sign. What is put in is not looked at again. These
// are the rules of Kubernetes (API reference, Container, args and env).
func Expand(s string, lookup func(name string) (value string, ok bool)) string {
	return expand(s, "$", lookup)
}

// expand writes dollar for each dollar sign that stands for itself.
func expand(s, dollar string, lookup func(string) (string, bool)) string {
	if strings.IndexByte(s, '$') < 0 {
		return s
	}
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(s, "$")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		s = rest
		end := strings.IndexByte(s, ')')
		switch {
		case strings.HasPrefix(s, "$"):
			b.WriteString(dollar)
			s = s[1:]
		case strings.HasPrefix(s, "(") && end > 0:
			if value, ok := lookup(s[1:end]); ok {
				b.WriteString(value)
			} else {
				b.WriteString("$" + s[:end+1])
			}
			s = s[end+1:]
		default:
			b.WriteString(dollar)
		}
	}
}

// expandKnown replaces what can be replaced before secrets are known. Without a
// reference to a secret the result is final; with one, it is a text that Expand
// finishes, whatever else its lookup knows.
func (e *environment) expandKnown(s string) (text string, secret bool) {
	text = Expand(s, func(name string) (string, bool) {
		v := e.variable(name)
		if v == nil {
			return "", false
		}
		secret = secret || v.secret()
		return v.Value, true
	})
	if !secret {
		return text, false
	}
	return expand(s, "$$", func(name string) (string, bool) {
		switch v := e.variable(name); {
		case v == nil:
			return "$$(" + name + ")", true
		case v.secret():
			return "$(" + name + ")", true
		default:
			return strings.ReplaceAll(v.Value, "$", "$$"), true
		}
	}), true
}

// secret: the value is not known before the trustee has been asked.
func (v *EnvVar) secret() bool { return v.Sealed != "" || v.Resource != "" || v.Expand != "" }

// expandVar makes the variable that a literal with references stands for.
func (e *environment) expandVar(name, literal string) (EnvVar, *Refusal) {
	text, secret := e.expandKnown(literal)
	if len(text) > maxEnvBytes {
		return EnvVar{}, refuse(RuleContainerEnv, keyPath("env", name), fmt.Sprintf("at most %d bytes", maxEnvBytes), fmt.Sprint(len(text)), "the references of this variable become too long")
	}
	if secret {
		// What the host has for it was made without the secret.
		return EnvVar{Name: name, Expand: text, optional: true}, nil
	}
	return EnvVar{Name: name, Value: text}, nil
}

// expandArgs replaces the references in args; open says of each whether it
// still holds one to a secret.
func (e *environment) expandArgs(args []string) (expanded []string, open []bool) {
	expanded, open = make([]string, len(args)), make([]bool, len(args))
	some := false
	for i, a := range args {
		expanded[i], open[i] = e.expandKnown(a)
		some = some || open[i]
	}
	if !some {
		return expanded, nil
	}
	for i, a := range expanded {
		if !open[i] {
			// All arguments are expanded again, or none.
			expanded[i] = strings.ReplaceAll(a, "$", "$$")
		}
	}
	return expanded, open
}
