package dcap

import "testing"

var all = []Status{UpToDate, SWHardeningNeeded, ConfigurationNeeded, ConfigurationAndSWHardeningNeeded, OutOfDate, OutOfDateConfigurationNeeded, Revoked}

// The tables of Intel's library (convergeTcbStatuses, checkForRelaunch).
func TestConverge(t *testing.T) {
	t.Parallel()
	outOfDate := map[Status]Status{
		UpToDate: OutOfDate, SWHardeningNeeded: OutOfDate, ConfigurationNeeded: OutOfDateConfigurationNeeded, ConfigurationAndSWHardeningNeeded: OutOfDateConfigurationNeeded,
		OutOfDate: OutOfDate, OutOfDateConfigurationNeeded: OutOfDateConfigurationNeeded, Revoked: Revoked,
	}
	for _, s := range all {
		if got := converge(s); got != s {
			t.Errorf("%s alone: got %s", s, got)
		}
		if got := converge(s, UpToDate, UpToDate); got != s {
			t.Errorf("%s with good parts: got %s", s, got)
		}
		if got := converge(s, UpToDate, OutOfDate); got != outOfDate[s] {
			t.Errorf("%s with a part out of date: got %s", s, got)
		}
		if got := converge(s, Revoked, OutOfDate); got != Revoked {
			t.Errorf("%s with a revoked part: got %s", s, got)
		}
	}
}

func TestRelaunch(t *testing.T) {
	t.Parallel()
	for _, launch := range all {
		for _, current := range all {
			want := launch
			behind := launch == OutOfDate || launch == OutOfDateConfigurationNeeded
			good := current == UpToDate || current == SWHardeningNeeded
			configure := current == ConfigurationNeeded || current == ConfigurationAndSWHardeningNeeded
			switch {
			case behind && (configure || good && launch == OutOfDateConfigurationNeeded):
				want = TDRelaunchAdvisedConfigurationNeeded
			case behind && good:
				want = TDRelaunchAdvised
			}
			if got := relaunch(launch, current); got != want {
				t.Errorf("launched %s, now %s: expected %s, got %s", launch, current, want, got)
			}
		}
	}
}
