//go:build kata_policy

package agent

import (
	"github.com/coffer-project/coffer/internal/guest/katapolicy"
	"github.com/coffer-project/coffer/podpolicy"
)

// kataGuard holds the host to a policy of Kata's agent.
func kataGuard(text string) (*podpolicy.Guard, error) {
	policy, err := katapolicy.Compile(text)
	if err != nil {
		return nil, err
	}
	return podpolicy.NewDelegatedGuard(policy), nil
}
