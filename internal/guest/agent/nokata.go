//go:build !kata_policy

package agent

import (
	"errors"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/podpolicy"
)

// kataGuard refuses a policy that nobody here would enforce.
func kataGuard(string) (*podpolicy.Guard, error) {
	return nil, errors.New("a policy for Kata's agent, which only a guest that is built with the tag kata_policy enforces; write " + initdata.KeyPodPolicy)
}
