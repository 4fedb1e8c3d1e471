//go:build aliyun

package program

import (
	"github.com/coffer-project/coffer/internal/guest/kms"
	"github.com/coffer-project/coffer/internal/guest/kms/aliyunkms"
)

func withAliyun(all map[string]kms.Provider) { all["aliyun"] = aliyunkms.New(aliyunkms.Options{}) }
