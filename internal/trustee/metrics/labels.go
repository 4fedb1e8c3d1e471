package metrics

import (
	"net/http"

	"github.com/coffer-project/coffer/internal/trustee/audit"
)

// The values that labels may take; everything else is counted as "other".

func methods() []string {
	return []string{http.MethodGet, http.MethodPost, http.MethodHead, http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodOptions}
}

func kinds() []string {
	return []string{audit.KindAttestation, audit.KindResource, audit.KindAdmin}
}

func rejections() []string { return []string{"rate", "concurrency", "clients"} }
