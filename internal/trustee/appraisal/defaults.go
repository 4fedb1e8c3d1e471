package appraisal

import (
	_ "embed"

	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/tee"
)

//go:embed default_cpu.rego
var defaultCPU string

func defaults() map[string][]policy.Module {
	return map[string][]policy.Module{
		DefaultPolicy + "_" + string(tee.CPU): {{Name: "default_cpu.rego", Text: defaultCPU}},
	}
}
