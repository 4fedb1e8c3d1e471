package kube

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing to be said about a place in the input: an error, or,
// among notes, something to know.
type Problem struct {
	// File is the name given with the file; Line and Column count from 1.
	File   string `json:"file"`
	Line   int    `json:"line"`
	Column int    `json:"column"`
	// Object is KIND/NAME, empty where there is none.
	Object string `json:"object,omitempty"`
	// Path of the field in the object, for example
	// spec.template.spec.containers[0].image.
	Path string `json:"path,omitempty"`
	// Problem says what is there and what was expected; Remedy what to do.
	Problem string `json:"problem"`
	Remedy  string `json:"remedy,omitempty"`
}

// String is FILE:LINE:COLUMN: OBJECT: PATH: PROBLEM (REMEDY).
func (p Problem) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d:%d: ", p.File, p.Line, p.Column)
	if p.Object != "" {
		b.WriteString(p.Object + ": ")
	}
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Problem)
	if p.Remedy != "" {
		b.WriteString(" (" + p.Remedy + ")")
	}
	return b.String()
}

// InputError lists everything that is wrong with an input; it has at least one
// problem. They are in the order of files and lines.
type InputError struct{ Problems []Problem }

// Error implements error: one line for each problem.
func (e *InputError) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// maxProblems bounds what is reported of one input.
const maxProblems = 200

// problems collects what is wrong.
type problems struct {
	list []Problem
	// files is the order of the input's files.
	files []string
}

func (p *problems) add(q Problem) {
	if len(p.list) < maxProblems && !slices.Contains(p.list, q) {
		p.list = append(p.list, q)
	}
}

// sorted is the list by place.
func (p *problems) sorted() []Problem {
	slices.SortStableFunc(p.list, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(slices.Index(p.files, a.File), slices.Index(p.files, b.File)), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return p.list
}

func (p *problems) err() error {
	if len(p.list) == 0 {
		return nil
	}
	return &InputError{p.sorted()}
}

// clip bounds text of the input that a message quotes.
func clip(s string) string {
	const limit = 200
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}
