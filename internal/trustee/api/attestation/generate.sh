#!/bin/sh
# Regenerates attestation.pb.go and attestation_grpc.pb.go with Debian's protoc and the plugins
# pinned in tools/go.mod.
set -eu
cd "$(dirname "$0")"
root=../../../..
out=${1:-.}
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
(cd "$root/tools" && go build -o "$bin/" google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc)
PATH="$bin:$PATH" protoc --go_out="$out" --go_opt=paths=source_relative \
	--go-grpc_out="$out" --go-grpc_opt=paths=source_relative attestation.proto
