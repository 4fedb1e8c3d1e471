package cli

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"text/tabwriter"
)

// maxCell is how much of a value a table shows.
const maxCell = 160

// printFields prints nested values as a table of paths and values.
func (a *app) printFields(fields map[string]any) error {
	// Whatever types a verifier uses, the table shows what JSON would.
	text, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	var plain map[string]any
	if err := json.Unmarshal(text, &plain); err != nil {
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
		for _, name := range slices.Sorted(maps.Keys(v)) {
			walkFields(join(name), v[name], f)
		}
	case []any:
		for i, e := range v {
			walkFields(join(strconv.Itoa(i)), e, f)
		}
	case nil:
		f(path, "-")
	case float64:
		f(path, strconv.FormatFloat(v, 'f', -1, 64))
	default:
		text := fmt.Sprint(v)
		if len(text) > maxCell {
			text = text[:maxCell] + "…"
		}
		f(path, text)
	}
}
