package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"text/tabwriter"
)

// maxCell is how many characters of a value a table shows.
const maxCell = 160

// printFields prints nested values as a table of paths and values.
func (a *app) printFields(fields map[string]any) error {
	// Whatever types a verifier uses, the table shows what JSON would.
	text, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	var plain map[string]any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber() // a clock of 64 bits is no float
	if err := d.Decode(&plain); err != nil {
		return err
	}
	w := tabwriter.NewWriter(a.env.Stdout, 0, 4, 2, ' ', 0)
	walkFields("", plain, func(path, value string) { row(w, "  "+path, value) })
	return w.Flush()
}

func walkFields(path string, v any, f func(path, value string)) {
	join := func(name string) string {
		if path == "" {
			return name
		}
		return path + "/" + name
	}
	switch v := v.(type) {
	case map[string]any:
		if len(v) == 0 && path != "" {
			f(path, "{}")
		}
		for _, name := range slices.Sorted(maps.Keys(v)) {
			walkFields(join(name), v[name], f)
		}
	case []any:
		if len(v) == 0 {
			f(path, "[]")
		}
		for i, e := range v {
			walkFields(join(strconv.Itoa(i)), e, f)
		}
	case nil:
		f(path, "-")
	default:
		text := fmt.Sprint(v)
		if runes := []rune(text); len(runes) > maxCell {
			text = string(runes[:maxCell]) + "…"
		}
		f(path, text)
	}
}
