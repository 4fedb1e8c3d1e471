//go:build !aliyun

package program

import "github.com/coffer-project/coffer/internal/guest/kms"

// withAliyun adds nothing: Alibaba Cloud keeps client keys in PKCS #12 files with
// RC2, which does not belong into every guest. One that is built with the tag
// aliyun has it.
func withAliyun(map[string]kms.Provider) {}
