package agent

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"github.com/coffer-project/coffer/internal/guest/image"
	"github.com/coffer-project/coffer/internal/guest/measurement"
)

// Operations of the guest's own events (domain "coffer").
const (
	OperationStart = "StartContainer"
	OperationExec  = "Exec"
)

// maxMeasuredArgs is how much of a command line is written out.
const maxMeasuredArgs = 4 << 10

// measurePull records an image as the guest components do: the text has a space
// behind its comma (confidential-data-hub, PullImage), and what is in it needs no
// escaping, being a reference and a digest.
func (sb *sandbox) measurePull(ctx context.Context, reference string, img *image.Image) error {
	if sb.recorder == nil {
		return nil
	}
	content := fmt.Sprintf(`{"image":"%s", "digest":"%s"}`, reference, img.ManifestDigest)
	return measured(sb.recorder.Once(ctx, measurement.DomainUpstream, "PullImage", content))
}

// measureStart records that a container runs. What is started again is measured
// once: probes and restarts must not fill the log.
func (sb *sandbox) measureStart(ctx context.Context, container, image string) error {
	return sb.measure(ctx, OperationStart, map[string]any{"container": container, "image": image})
}

// measureExec records a command.
func (sb *sandbox) measureExec(ctx context.Context, container string, args []string) error {
	content := map[string]any{"container": container, "args": args}
	n := 0
	for _, a := range args {
		n += len(a)
	}
	if n > maxMeasuredArgs {
		raw, err := json.Marshal(args)
		if err != nil {
			return err
		}
		content = map[string]any{"container": container, "argsSHA256": fmt.Sprintf("%x", sha256.Sum256(raw))}
	}
	return sb.measure(ctx, OperationExec, content)
}

func (sb *sandbox) measure(ctx context.Context, operation string, content map[string]any) error {
	if sb.recorder == nil {
		return nil
	}
	raw, err := json.Marshal(content) // sorted, on one line
	if err != nil {
		return err
	}
	return measured(sb.recorder.Once(ctx, measurement.DomainCoffer, operation, string(raw)))
}

// measured wraps a failure: what cannot be measured does not run.
func measured(err error) error {
	if err == nil {
		return nil
	}
	return failed("measurement", err)
}
