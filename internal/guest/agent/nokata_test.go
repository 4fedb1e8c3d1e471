//go:build !kata_policy

package agent

import (
	"strings"
	"testing"

	"github.com/coffer-project/coffer/initdata"
)

func TestAKataPolicyIsRefused(t *testing.T) {
	t.Parallel()
	_, err := guardFor(&initdata.Document{Data: map[string]string{initdata.KeyPolicyRego: "package agent_policy"}})
	if r := refusalOf(err); r == nil || r.Rule != RuleInitdataContent || !strings.Contains(r.Got, "kata_policy") || !strings.Contains(r.Got, initdata.KeyPodPolicy) {
		t.Errorf("got %v", err)
	}
}
