package volumes

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// put sends a version of a volume: PutFiles announces it, a FILES stream carries
// it. It returns when the guest has taken it, or has refused it and kept what it
// had.
func put(ctx context.Context, h Host, volume string, version uint64, s *snapshot) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answer := make(chan error, 1)
	go func() {
		_, err := h.Agent().PutFiles(ctx, &agentapi.PutFilesRequest{Volume: volume, Version: version})
		cancel() // a guest that has refused reads no more
		answer <- err
	}()
	sent := send(ctx, h, volume, version, s)
	if sent != nil {
		cancel()
	}
	err := <-answer
	if err != nil && sent != nil && canceled(err) {
		return sent // it was this side that gave up
	}
	return err
}

func send(ctx context.Context, h Host, volume string, version uint64, s *snapshot) error {
	conn, err := h.Open(ctx, &agentapi.StreamHeader{Kind: agentapi.StreamHeader_FILES, Volume: volume, Version: version})
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	return errors.Join(s.archive(conn), conn.Close())
}

func canceled(err error) bool {
	return errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled
}

// refused tells that the guest's policy decided against a call: the same again
// gets the same answer.
func refused(err error) bool {
	return status.Code(err) == codes.PermissionDenied
}
