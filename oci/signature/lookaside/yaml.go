package lookaside

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// node is a name with a value or with names below it.
type node struct {
	line     int
	name     string
	value    string
	hasValue bool
	children []*node
}

// parseYAML reads the part of YAML 1.2 that registries.d files are written in:
// mappings of mappings by indentation, with plain or quoted scalars on one
// line, and comments. Everything else (sequences, flow style, anchors, tags,
// block scalars, escapes, several documents, names that occur twice) is
// refused, with its line: a reader that understood it otherwise would find
// signatures elsewhere.
func parseYAML(data []byte) ([]*node, error) {
	if !utf8.Valid(data) {
		return nil, fmt.Errorf("the text is not UTF-8")
	}
	root := &node{}
	type level struct {
		indent int
		at     *node
	}
	stack := []level{{-1, root}}
	started := false // by the line ---
	for i, line := range strings.Split(strings.ReplaceAll(string(data), "\r\n", "\n"), "\n") {
		text := strings.TrimLeft(line, " ")
		trimmed := strings.TrimSpace(text)
		if trimmed == "" || trimmed[0] == '#' {
			continue
		}
		if trimmed == "---" && !started && len(root.children) == 0 {
			started = true
			continue
		}
		if strings.ContainsAny(line, "\t\v\f\x00") {
			return nil, fmt.Errorf("line %d: expected spaces, got another control character", i+1)
		}
		n, err := parseLine(text)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		n.line = i + 1
		indent := len(line) - len(text)
		for indent <= stack[len(stack)-1].indent {
			stack = stack[:len(stack)-1]
		}
		parent := stack[len(stack)-1].at
		if parent.hasValue {
			return nil, fmt.Errorf("line %d: %s has a value already, and so nothing below it", i+1, parent.name)
		}
		if err := parent.add(n, indent, parent == root); err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		if stack = append(stack, level{indent, n}); len(stack) > 4 {
			return nil, fmt.Errorf("line %d: nested deeper than anything here is", i+1)
		}
	}
	return root.children, nil
}

func (n *node) add(child *node, indent int, top bool) error {
	if top && indent != 0 {
		return fmt.Errorf("it is indented, but below nothing")
	}
	for _, c := range n.children {
		if c.name == child.name {
			return fmt.Errorf("%s is there twice", child.name)
		}
	}
	n.children = append(n.children, child)
	return nil
}

// parseLine reads NAME: [VALUE].
func parseLine(text string) (*node, error) {
	name, rest, err := scalar(text, true)
	if err != nil {
		return nil, err
	}
	if name == "" || !strings.HasPrefix(rest, ":") || (len(rest) > 1 && rest[1] != ' ') {
		return nil, fmt.Errorf("expected NAME: VALUE, or NAME: and more below it")
	}
	n := &node{name: name}
	rest = strings.TrimSpace(rest[1:])
	if rest == "" || rest[0] == '#' || rest == "{}" {
		return n, nil
	}
	value, after, err := scalar(rest, false)
	if err != nil {
		return nil, err
	}
	if after = strings.TrimSpace(after); after != "" && after[0] != '#' {
		return nil, fmt.Errorf("there is something after the value")
	}
	n.value, n.hasValue = value, true
	return n, nil
}

// scalar takes a plain or quoted scalar off text: a name, which ends at a colon
// that a space or the line's end follows, or a value.
func scalar(text string, name bool) (value, rest string, err error) {
	switch quote := text[0]; quote {
	case '"', '\'':
		end := strings.IndexByte(text[1:], quote)
		if end < 0 {
			return "", "", fmt.Errorf("the quotation does not end on its line")
		}
		value, rest = text[1:1+end], text[2+end:]
		if strings.Contains(value, `\`) || strings.HasPrefix(rest, string(quote)) {
			return "", "", fmt.Errorf("escapes in quotations are not supported")
		}
		return value, rest, nil
	}
	if strings.ContainsRune("-?:,[]{}#&*!|>%@`", rune(text[0])) {
		return "", "", fmt.Errorf("a scalar that begins with %q is not supported here: put it in quotes", text[0])
	}
	end := len(text)
	if comment := strings.Index(text, " #"); comment >= 0 {
		end = comment
	}
	if name {
		colon := strings.Index(text, ": ")
		if colon < 0 && strings.HasSuffix(strings.TrimRight(text[:end], " "), ":") {
			colon = strings.LastIndexByte(text[:end], ':')
		}
		if colon < 0 || colon > end {
			return "", "", fmt.Errorf("expected a colon after the name")
		}
		return strings.TrimRight(text[:colon], " "), text[colon:], nil
	}
	if strings.Contains(text[:end], ": ") {
		return "", "", fmt.Errorf("a colon in a plain value is not supported: put it in quotes")
	}
	return strings.TrimRight(text[:end], " "), text[end:], nil
}
