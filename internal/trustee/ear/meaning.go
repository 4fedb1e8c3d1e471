package ear

// general are the values that mean the same in every component
// (draft-ietf-rats-ar4si, §2.3.2).
var general = map[int8]string{
	-1: "the verifier malfunctioned",
	0:  "nothing is claimed",
	1:  "the evidence has parts that the verifier does not understand",
	99: "the evidence is not signed by whom it should be",
}

// meanings are what the values of the components say (draft-ietf-rats-ar4si,
// §2.3.4), in words of ours.
var meanings = map[string]map[int8]string{
	"instance-identity": {
		2:  "the environment is known, and nothing speaks against it",
		96: "the environment is known, and is not to be trusted",
		97: "the environment is not known",
	},
	"configuration": {
		2:  "the configuration is known and approved",
		3:  "the configuration exposes no known weakness",
		32: "the configuration exposes known weaknesses",
		36: "the configuration, or a part of it, could not be judged",
		96: "the configuration exposes weaknesses that are not acceptable",
	},
	"executables": {
		2:  "only approved software was loaded, at boot and since",
		3:  "only approved software was loaded at boot",
		4:  "only recognised software was loaded at boot",
		32: "the software is recognised, but has known weaknesses",
		33: "software was loaded that no reference value knows",
		96: "software was loaded that is not acceptable",
	},
	"file-system": {
		2:  "only approved files were found",
		32: "files were found that are not known",
		96: "files were found that are not acceptable",
	},
	"hardware": {
		2:  "hardware and firmware are genuine and supported",
		32: "hardware and firmware have known weaknesses, or are simulated",
		96: "hardware or firmware is known, and is not to be trusted",
		97: "hardware or firmware is not known",
	},
	"runtime-opaque": {
		2:  "memory is hidden from everyone outside of the environment",
		32: "memory is hidden from other guests, but not from the host",
		96: "memory can be read from outside",
	},
	"storage-opaque": {
		2:  "stored secrets can be read by the environment only",
		32: "stored secrets are encrypted, but others may hold the keys",
		96: "stored secrets can be read from outside",
	},
	"sourced-data": {
		2:  "data comes from sources that were attested and approved",
		32: "some sources of data could not be judged",
		96: "a source of data is not to be trusted",
	},
}

// Meaning says in words what a value of a component means, or what its tier
// does where the value itself has no meaning of its own.
func Meaning(component string, v int8) string {
	if text, ok := meanings[component][v]; ok {
		return text
	}
	if text, ok := general[v]; ok {
		return text
	}
	switch Tier(v) {
	case Affirming:
		return "as it should be"
	case Warning:
		return "not as it should be, but perhaps acceptable"
	case Contraindicated:
		return "not acceptable"
	default:
		return "nothing is claimed"
	}
}
