package appraisal

import (
	"embed"
	"maps"
	"slices"

	"github.com/coffer-project/coffer/internal/trustee/policy"
	"github.com/coffer-project/coffer/tee"
)

// policies holds the built-in policies: what all share, and a file for every
// family of environments.
//
//go:embed policies/*.rego
var policies embed.FS

// The classes of environment besides those that package tee names.
const (
	Switch    tee.Class = "switch"
	PPCIe     tee.Class = "ppcie"
	DCU       tee.Class = "dcu"
	NVIDIADPU tee.Class = "nvidia-dpu"
)

// BlueField is NVIDIA's data processing unit.
const BlueField tee.Name = "nvidia-dpu"

// Classes lists every class that has a built-in policy.
func Classes() []tee.Class {
	return []tee.Class{tee.CPU, tee.GPU, Switch, PPCIe, DCU, NVIDIADPU}
}

// families are the files of the built-in policies besides base.rego, by class
// and environment.
func families() map[tee.Class]map[tee.Name][]string {
	return map[tee.Class]map[tee.Name][]string{
		tee.CPU: {
			tee.SNP: {"snp"}, tee.TDX: {"intel", "tdx"}, tee.SGX: {"intel", "sgx"},
			tee.AzureSNPVTPM: {"az-snp-vtpm"}, tee.AzureTDXVTPM: {"intel", "az-tdx-vtpm"}, tee.TPM: {"tpm"},
			tee.CCA: {"cca"}, tee.CSV: {"csv"}, tee.SE: {"se"}, tee.Sample: {"sample"},
		},
		tee.GPU:   {tee.NVIDIA: {"nvidia-gpu"}, tee.SampleDevice: {"sampledevice"}},
		Switch:    {tee.NVIDIA: {"nvidia-switch"}},
		PPCIe:     {tee.NVIDIA: {"nvidia-ppcie"}},
		DCU:       {tee.HygonDCU: {"hygondcu"}},
		NVIDIADPU: {BlueField: {"nvidia-dpu"}},
	}
}

// DefaultModules are the built-in policy of a class, nil where there is none.
// It judges every environment of the class and refuses all others.
func DefaultModules(c tee.Class) []policy.Module {
	var files []string
	for _, name := range slices.Sorted(maps.Keys(families()[c])) {
		for _, f := range families()[c][name] {
			if !slices.Contains(files, f) {
				files = append(files, f)
			}
		}
	}
	return modules(files)
}

func modules(files []string) []policy.Module {
	if len(files) == 0 {
		return nil
	}
	var out []policy.Module
	for _, name := range append([]string{"base"}, files...) {
		// The files are part of the program. One that was missing would be
		// empty, which does not compile; a test compiles them all.
		text, _ := policies.ReadFile("policies/" + name + ".rego")
		out = append(out, policy.Module{Name: name + ".rego", Text: string(text)})
	}
	return out
}

// defaults are the built-in policies by id, and for each environment the part
// of it that it needs: most of a policy for all is about others.
func defaults() map[string][]policy.Module {
	out := map[string][]policy.Module{}
	for class, environments := range families() {
		id := DefaultPolicy + "_" + string(class)
		out[id] = DefaultModules(class)
		for name, files := range environments {
			out[policy.Variant(id, string(name))] = modules(files)
		}
	}
	return out
}

// BuiltIn are the files of the built-in policy that judge one environment, nil
// where there is none.
func BuiltIn(c tee.Class, name tee.Name) []policy.Module { return modules(families()[c][name]) }
