package blobs

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/oci"
)

// FuzzGet is a hostile host: what comes out is never more than what was asked
// for, and the pool survives.
func FuzzGet(f *testing.F) {
	var b bytes.Buffer
	if err := channel.WriteMessage(&b, &agentapi.BlobReply{Found: true, Size: 4}); err != nil {
		f.Fatal(err)
	}
	f.Add(append(b.Bytes(), "blob"...), int64(4))
	f.Add(append(b.Bytes(), "blob and more"...), int64(0))
	f.Add([]byte{0, 0, 0, 0}, int64(1))
	f.Fuzz(func(t *testing.T, data []byte, size int64) {
		p := newPool(limits{stall: 10 * time.Second, grace: 10 * time.Second, rate: 1 << 20})
		guest, host := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- p.Serve(t.Context(), guest) }()
		go func() {
			var req agentapi.BlobRequest
			if channel.ReadMessage(host, &req) == nil {
				_, _ = host.Write(data)
			}
			_ = host.Close()
		}()
		rc, err := p.Get(t.Context(), oci.Descriptor{Digest: oci.FromBytes(nil), Size: size})
		if err == nil {
			n, err := io.Copy(io.Discard, rc)
			if most := max(size, 0); most > 0 && n > most || most == 0 && n > oci.MaxDocument || err == nil && most > 0 && n != most {
				t.Errorf("%d bytes of %d, %v", n, size, err)
			}
			_ = rc.Close()
		}
		_ = host.Close()
		<-done
	})
}
