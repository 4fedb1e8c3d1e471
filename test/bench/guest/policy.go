package main

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// mostDecision is the most that a decision of the pod policy may take, in µs.
const mostDecision = 20.0

// decisions are the policy's benchmarks, and how many decisions one operation
// is; see podpolicy/bench_test.go.
var decisions = []struct {
	benchmark, name string
	decisions       float64
}{
	{"AdmitAndConfigure", "create and delete a container", 2},
	{"Exec", "a command's life", 4},
	{"Signal", "a signal", 1},
	{"File", "a file", 1},
	{"Refusal", "a refusal", 1},
}

// policy takes the figures of the package's own benchmarks: the best of several
// runs each, since what others do on the machine only adds.
func (b *bench) policy(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", ".", "-benchtime", "100ms", "-count", strconv.Itoa(b.pairs), "./podpolicy")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, tail(out))
	}
	for _, d := range decisions {
		var times []float64
		for line := range strings.Lines(string(out)) {
			fields := strings.Fields(line)
			if len(fields) > 3 && fields[3] == "ns/op" && strings.HasPrefix(fields[0], "Benchmark"+d.benchmark) {
				ns, err := strconv.ParseFloat(fields[2], 64)
				if err != nil {
					return err
				}
				times = append(times, ns/1000/d.decisions)
			}
		}
		if len(times) == 0 {
			return fmt.Errorf("no Benchmark%s in podpolicy", d.benchmark)
		}
		b.report.AtMost("policy/"+strings.ReplaceAll(d.name, " ", "-"), slices.Min(times), "µs", mostDecision, "")
	}
	return nil
}
