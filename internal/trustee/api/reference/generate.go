// Package reference is the gRPC interface of a reference value provider:
// protobuf messages and the service that Trustee's clients call.
package reference

//go:generate sh generate.sh
