// Package attestation is the gRPC interface of an attestation service:
// protobuf messages and the service that Trustee's clients call.
package attestation

//go:generate sh generate.sh
