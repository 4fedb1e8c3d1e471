package ear

import "testing"

func TestMeaning(t *testing.T) {
	for _, name := range Names() {
		if len(meanings[name]) == 0 {
			t.Errorf("component %s: its values have no meaning", name)
		}
		for v := -128; v <= 127; v++ {
			if Meaning(name, int8(v)) == "" {
				t.Errorf("%s %d: no meaning", name, v)
			}
		}
	}
	if got := Meaning("executables", 33); got != "software was loaded that no reference value knows" {
		t.Errorf("executables 33: %s", got)
	}
	if Meaning("hardware", 5) != "as it should be" || Meaning("hardware", 120) != "not acceptable" {
		t.Error("values without a meaning of their own have their tier's")
	}
}
