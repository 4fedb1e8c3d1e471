package eventlog

import (
	"encoding/base64"
	"encoding/hex"
)

// Claims is the claim "uefi_event_logs": a list of
//
//	{"index": register, "type_name": "EV_…", "digest_matches_event": bool,
//	 "digests": [{"alg": "SHA-384", "digest": hex}], "event": base64 of the data,
//	 "details": {…}}
//
// in the form of confidential-containers/trustee@78962cd4, deps/eventlog. Details
// has the members that are known for the type: string; unicode_name,
// unicode_name_length, variable_name, variable_data (base64), variable_data_length;
// device_paths; for runtime events string, unicode_name "AAEL" and
// data{domain,operation,content}, nothing where the digest is of other data.
//
// It is for those who look at a log without trust: a register vouches for one
// algorithm's digests only, see [Log.ClaimsOf].
func (l *Log) Claims() []any {
	out := make([]any, len(l.Events))
	for i := range l.Events {
		out[i] = l.claim(&l.Events[i])
	}
	return out
}

// ClaimsOf is [Log.Claims] with the digests of one algorithm, the one that
// [Log.Compare] has compared registers of: nothing vouches for the others, not even
// that they are digests of anything.
func (l *Log) ClaimsOf(a Alg) []any {
	out := make([]any, len(l.Events))
	for i, e := range l.Events {
		var digests []Digest
		if d := e.Digest(a); d != nil {
			digests = []Digest{{a, d}}
		}
		e.Digests = digests
		out[i] = l.claim(&e)
	}
	return out
}

func (l *Log) claim(e *Event) map[string]any {
	digests := make([]any, len(e.Digests))
	for i, d := range e.Digests {
		digests[i] = map[string]any{"alg": d.Alg.String(), "digest": hex.EncodeToString(d.Value)}
	}
	details, _ := e.Details() // empty where the data is not understood
	matches := l.DigestMatchesEvent(e)
	if details.Runtime != nil && !matches {
		details = Details{} // what is measured of a runtime event is its data: this is not it
	}
	return map[string]any{
		"index":                e.Register,
		"type_name":            e.Type.String(),
		"digest_matches_event": matches,
		"digests":              digests,
		"event":                base64.StdEncoding.EncodeToString(e.Data),
		"details":              details.claim(e.Type),
	}
}
