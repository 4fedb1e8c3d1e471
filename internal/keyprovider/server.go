package keyprovider

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	pb "github.com/containers/ocicrypt/utils/keyprovider"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// service is the gRPC service keyprovider.KeyProviderService (ocicrypt,
// utils/keyprovider/keyprovider.proto).
type service struct {
	pb.UnimplementedKeyProviderServiceServer
	p *Provider
}

// WrapKey implements the service.
func (s service) WrapKey(ctx context.Context, in *pb.KeyProviderKeyWrapProtocolInput) (*pb.KeyProviderKeyWrapProtocolOutput, error) {
	return s.answer(ctx, in, "wrap", s.p.Wrap)
}

// UnWrapKey implements the service.
func (s service) UnWrapKey(ctx context.Context, in *pb.KeyProviderKeyWrapProtocolInput) (*pb.KeyProviderKeyWrapProtocolOutput, error) {
	return s.answer(ctx, in, "unwrap", s.p.Unwrap)
}

func (s service) answer(ctx context.Context, in *pb.KeyProviderKeyWrapProtocolInput, what string, f func(context.Context, []byte) ([]byte, error)) (*pb.KeyProviderKeyWrapProtocolOutput, error) {
	out, err := f(ctx, in.GetKeyProviderKeyWrapProtocolInput())
	if err != nil {
		s.p.o.Logger.Warn("a key was not "+what+"ped", "error", err)
		return nil, status.Errorf(codes.InvalidArgument, "%v", err)
	}
	return &pb.KeyProviderKeyWrapProtocolOutput{KeyProviderKeyWrapProtocolOutput: out}, nil
}

// Serve answers on l until ctx ends, and closes l.
func (p *Provider) Serve(ctx context.Context, l net.Listener) error {
	s := grpc.NewServer(grpc.MaxRecvMsgSize(2*maxMessage), grpc.MaxConcurrentStreams(16))
	pb.RegisterKeyProviderServiceServer(s, service{p: p})
	stop := context.AfterFunc(ctx, s.GracefulStop)
	defer stop()
	err := s.Serve(l)
	if ctx.Err() != nil || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// Listen opens ADDRESS:PORT, or unix:PATH, a socket that only this user may
// open. The address is one of loopback unless others are allowed: layer keys
// pass in the clear.
func Listen(ctx context.Context, address string, allowRemote bool) (net.Listener, error) {
	var c net.ListenConfig
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		l, err := c.Listen(ctx, "unix", path)
		if err != nil {
			return nil, err
		}
		if err := os.Chmod(path, 0o600); err != nil {
			return nil, errors.Join(err, l.Close())
		}
		return l, nil
	}
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("expected ADDRESS:PORT with a numeric address, or unix:PATH, got %q", address)
	}
	if !a.Addr().Unmap().IsLoopback() && !allowRemote {
		return nil, fmt.Errorf("%s is not a loopback address: layer keys would pass in the clear, for everybody who can connect", a)
	}
	return c.Listen(ctx, "tcp", a.String())
}

// Configuration is the file that OCICRYPT_KEYPROVIDER_CONFIG names, for a server
// at that address.
func Configuration(a net.Addr) ([]byte, error) {
	target := a.String()
	if a.Network() == "unix" {
		target = "unix://" + target
	}
	return json.MarshalIndent(map[string]any{"key-providers": map[string]any{Name: map[string]string{"grpc": target}}}, "", "  ")
}
