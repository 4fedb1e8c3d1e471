// Package report is the form of every benchmark's result: rows that are printed
// as a table for people and written as JSON for programs.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"text/tabwriter"
)

// Row is one figure.
type Row struct {
	// Name is stable: figures of different days are compared by it.
	Name string `json:"name"`
	// Value in Unit.
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Target is the most Value may be, or where AtLeast is set the least; nil for
	// a figure without a target.
	Target *float64 `json:"target"`
	// AtLeast turns the target round.
	AtLeast bool `json:"at_least,omitempty"`
	// Pass tells whether the target is met; true without one.
	Pass bool `json:"pass"`
	// Peer is what Value is compared with, or empty.
	Peer string `json:"peer"`
	// Command makes the figure again.
	Command string `json:"command"`
}

// Report is the rows of one run. It is not safe for concurrent use.
type Report struct {
	// Command is written to every row.
	Command string
	rows    []Row
}

// Add adds a figure without a target.
func (r *Report) Add(name string, value float64, unit, peer string) {
	r.rows = append(r.rows, Row{Name: name, Value: value, Unit: unit, Pass: true, Peer: peer, Command: r.Command})
}

// AtMost adds a figure that must not be above target.
func (r *Report) AtMost(name string, value float64, unit string, target float64, peer string) {
	r.rows = append(r.rows, Row{Name: name, Value: value, Unit: unit, Target: &target, Pass: value <= target, Peer: peer, Command: r.Command})
}

// AtLeast adds a figure that must not be below target.
func (r *Report) AtLeast(name string, value float64, unit string, target float64, peer string) {
	r.rows = append(r.rows, Row{Name: name, Value: value, Unit: unit, Target: &target, AtLeast: true, Pass: value >= target, Peer: peer, Command: r.Command})
}

// Missed returns the names of the figures that miss their target.
func (r *Report) Missed() []string {
	var names []string
	for _, row := range r.rows {
		if !row.Pass {
			names = append(names, row.Name)
		}
	}
	return names
}

// Table prints the rows for people.
func (r *Report) Table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	var err error
	line := func(cells ...any) {
		if err == nil {
			_, err = fmt.Fprintf(t, "%v\t%v\t%v\t%v\t%v\t%v\n", cells...)
		}
	}
	line("name", "value", "unit", "target", "", "peer")
	for _, row := range r.rows {
		target, verdict := "", ""
		if row.Target != nil {
			target, verdict = "≤ "+number(*row.Target), "ok"
			if row.AtLeast {
				target = "≥ " + number(*row.Target)
			}
			if !row.Pass {
				verdict = "MISSED"
			}
		}
		line(row.Name, number(row.Value), row.Unit, target, verdict, row.Peer)
	}
	if err != nil {
		return err
	}
	return t.Flush()
}

// Write replaces the JSON file at path, whose directory is made.
func (r *Report) Write(path string) error {
	data, err := json.MarshalIndent(r.rows, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

// number prints a whole number in full and any other with four digits or more.
func number(v float64) string {
	if v == math.Trunc(v) && math.Abs(v) < 1e15 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'f', 4, 64)
}
