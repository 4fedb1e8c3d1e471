package dcap

import "slices"

// Status is what Intel says about a patch level.
type Status string

// The statuses. Those of relaunch are derived; Intel's documents have the others.
const (
	UpToDate                             Status = "UpToDate"
	SWHardeningNeeded                    Status = "SWHardeningNeeded"
	ConfigurationNeeded                  Status = "ConfigurationNeeded"
	ConfigurationAndSWHardeningNeeded    Status = "ConfigurationAndSWHardeningNeeded"
	OutOfDate                            Status = "OutOfDate"
	OutOfDateConfigurationNeeded         Status = "OutOfDateConfigurationNeeded"
	Revoked                              Status = "Revoked"
	TDRelaunchAdvised                    Status = "TDRelaunchAdvised"
	TDRelaunchAdvisedConfigurationNeeded Status = "TDRelaunchAdvisedConfigurationNeeded"
)

// ofPlatform reports whether TCB info may give a platform that status.
func (s Status) ofPlatform() bool {
	switch s {
	case UpToDate, SWHardeningNeeded, ConfigurationNeeded, ConfigurationAndSWHardeningNeeded, OutOfDate, OutOfDateConfigurationNeeded, Revoked:
		return true
	}
	return false
}

// ofEnclave reports whether a quoting enclave or a TDX module may have it.
func (s Status) ofEnclave() bool {
	switch s {
	case UpToDate, ConfigurationNeeded, OutOfDate, OutOfDateConfigurationNeeded, Revoked:
		return true
	}
	return false
}

func (s Status) needsConfiguration() bool {
	switch s {
	case ConfigurationNeeded, ConfigurationAndSWHardeningNeeded, OutOfDateConfigurationNeeded, TDRelaunchAdvisedConfigurationNeeded:
		return true
	}
	return false
}

// converge is the platform's status in view of those of its quoting enclave
// and its TDX module: one that is out of date makes the whole so, a revoked one
// likewise.
func converge(platform Status, parts ...Status) Status {
	if platform == Revoked || slices.Contains(parts, Revoked) {
		return Revoked
	}
	if !slices.ContainsFunc(parts, func(s Status) bool { return s == OutOfDate || s == OutOfDateConfigurationNeeded }) {
		return platform
	}
	switch platform {
	case UpToDate, SWHardeningNeeded:
		return OutOfDate
	case ConfigurationNeeded, ConfigurationAndSWHardeningNeeded:
		return OutOfDateConfigurationNeeded
	}
	return platform
}

// relaunch is the status of a TD that was launched under one patch level of
// the TDX module and runs under another (TD 1.5: TEE_TCB_SVN and
// TEE_TCB_SVN2): where only the launch was out of date, starting the TD anew
// helps.
func relaunch(launch, current Status) Status {
	if launch != OutOfDate && launch != OutOfDateConfigurationNeeded {
		return launch
	}
	switch current {
	case UpToDate, SWHardeningNeeded, ConfigurationNeeded, ConfigurationAndSWHardeningNeeded:
		if launch.needsConfiguration() || current.needsConfiguration() {
			return TDRelaunchAdvisedConfigurationNeeded
		}
		return TDRelaunchAdvised
	}
	return launch
}
