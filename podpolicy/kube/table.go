package kube

import (
	"fmt"
	"strings"
)

// Table is [Fields] as a table in Markdown, for docs/prepare.md.
func Table() string {
	var b strings.Builder
	b.WriteString("| field of PodSpec | becomes | how, or why not |\n| --- | --- | --- |\n")
	for _, f := range Fields() {
		how := f.How
		if len(f.Only) > 0 {
			var values []string
			for _, v := range f.Only {
				if v != "" {
					values = append(values, v)
				}
			}
			if len(values) > 0 {
				how += "; only " + strings.Join(values, " and ")
			} else {
				how += "; only the default"
			}
		}
		if f.Remedy != "" {
			how += " → " + f.Remedy
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.Path, f.Decision, strings.ReplaceAll(how, "|", `\|`))
	}
	return b.String()
}
