package nvidiaverify

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/internal/memo"
	"github.com/coffer-project/coffer/tee/nvidia"
	"github.com/coffer-project/coffer/tee/nvidia/rim"
)

// source is one manifest that a device's measurements are compared with.
type source struct {
	// name is "driver" or "vbios", claim the prefix of its claims.
	name, claim string
	// id is what NVIDIA's service knows it by.
	id string
	// product, edition and version it has to be for.
	product, edition, version string
}

// What an NVSwitch's report does not say of its board (NVIDIA/nvtrust@0281730,
// nv_switch_verifier/config.py).
const switchBoard = "5612_0002_890"

// nvdecIndex is the manifest's index of the video decoder's firmware, which
// means nothing while the decoder is off (NVIDIA/nvtrust@0281730, verifier.py).
const nvdecIndex = 35

// sources are the manifests for a device. The names are those of NVIDIA's
// verifiers; what is not text of a report's form cannot get into them.
func (d *device) sources() ([]source, error) {
	p := d.report
	version := strings.ToUpper(p.VBIOSVersion())
	if version == "" {
		return nil, fmt.Errorf("the report has no %s", nvidia.FieldVBIOSVersion)
	}
	plain := strings.ReplaceAll(version, ".", "")
	if d.Arch == nvidia.LS10 {
		return []source{{"vbios", "x-nvidia-switch-bios-rim-", "NV_SWITCH_BIOS_" + switchBoard + "_" + plain, "LS10", "SWITCH", version}}, nil
	}
	chip, driverID := d.chain.id.Chip, "NV_GPU_DRIVER_GH100_"
	if d.Arch == nvidia.Blackwell {
		if stated := p.Text(nvidia.FieldChipInfo); stated != "" {
			chip = stated
		}
		driverID = "NV_GPU_CC_DRIVER_" + chip + "_"
	}
	driver := p.Text(nvidia.FieldDriverVersion)
	board := []string{p.Text(nvidia.FieldProject), p.Text(nvidia.FieldProjectSKU), p.Text(nvidia.FieldChipSKU)}
	if driver == "" || slices.Contains(board, "") {
		return nil, fmt.Errorf("the report lacks one of %s, %s, %s, %s", nvidia.FieldDriverVersion, nvidia.FieldProject, nvidia.FieldProjectSKU, nvidia.FieldChipSKU)
	}
	vbiosID := "NV_GPU_VBIOS_" + strings.ToUpper(strings.Join(board, "_")) + "_" + plain
	for _, id := range []string{driverID + driver, vbiosID} {
		if strings.Trim(id, idCharacters) != "" {
			return nil, fmt.Errorf("the report makes the name of a manifest that cannot be: %.64q", id)
		}
	}
	return []source{
		{"driver", "x-nvidia-gpu-driver-rim-", driverID + driver, chip, "GPU", driver},
		{"vbios", "x-nvidia-gpu-vbios-rim-", vbiosID, chip, "GPU", version},
	}, nil
}

// idCharacters are those that names of manifests consist of.
const idCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"

// compare fetches the manifests and holds the measurements against them. The
// error is the context's.
func (v *verifier) compare(ctx context.Context, l *checks.List, d *device) error {
	sources, err := d.sources()
	if err != nil {
		l.Missing(d.fail("nvidia.rim", "evidence", "what NVIDIA's manifests are named after", err.Error(), "update the device's driver and firmware, or register its measurements"), nil)
		return nil
	}
	manifests := make([]*rim.Manifest, len(sources))
	whole := true
	for i, s := range sources {
		if manifests[i], err = v.manifest(ctx, l, d, s); err != nil {
			return err
		}
		whole = whole && manifests[i] != nil
	}
	if whole {
		d.judge(l, sources, manifests)
	}
	return nil
}

// manifest fetches and verifies one; nil where that failed, which is recorded.
func (v *verifier) manifest(ctx context.Context, l *checks.List, d *device, s source) (*rim.Manifest, error) {
	field := "manifest " + s.id
	item := "NVIDIA's reference manifest " + s.id
	body, err := v.o.Collateral.RIM(ctx, s.id)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	var m *rim.Manifest
	if err == nil {
		d.claims[s.claim+"fetched"] = true
		if m, err = v.readManifest(body, d.chain.root, s); err != nil {
			err = &tee.CollateralError{Item: item, Reason: tee.CollateralInvalid, Err: err}
		}
	}
	if err != nil {
		l.Missing(d.fail("nvidia.rim", field, "", "", ""), err)
		return nil, nil
	}
	certs := map[string]any{"x-nvidia-cert-status": "valid", "x-nvidia-cert-expiration-date": expiry(m).UTC().Format(time.RFC3339)}
	if until, now := expiry(m), v.o.Now(); now.After(until) {
		d.claims["collateral_expiration_status"], certs["x-nvidia-cert-status"] = "1", "expired"
		l.FailUnless(v.o.AllowMissingCollateral, d.fail("nvidia.collateral", field, "one whose signer is valid at "+now.UTC().Format(time.RFC3339),
			"expired at "+until.UTC().Format(time.RFC3339), "fetch it anew: NVIDIA signs its manifests again"))
	}
	if v.o.CheckRevocation {
		status, err := v.revocation(ctx, l, d, field, m.Certificates)
		if err != nil {
			return nil, err
		}
		if status != "" {
			certs["x-nvidia-cert-ocsp-status"] = status
		}
	}
	d.claims[s.claim+"cert-chain"], d.claims[s.claim+"signature-verified"] = certs, true
	d.claims[s.claim+"version-match"], d.claims[s.claim+"measurements-available"] = true, true
	return m, nil
}

// expiry is when the first of a manifest's certificates ends.
func expiry(m *rim.Manifest) time.Time {
	until := m.Certificates[0].NotAfter
	for _, c := range m.Certificates[1:] {
		if c.NotAfter.Before(until) {
			until = c.NotAfter
		}
	}
	return until
}

// readManifest verifies a manifest, and that it is the one that was asked for:
// NVIDIA's service has answered with those of other chips.
func (v *verifier) readManifest(body []byte, of root, s source) (*rim.Manifest, error) {
	now := v.o.Now()
	key := memo.KeyOf(body, of.cert.Raw)
	m, known := v.manifests.Get(key, now)
	if !known {
		var err error
		if m, err = rim.Verify(body, func(certs []*x509.Certificate) error { return v.trustManifest(certs, of, now) }); err != nil {
			return nil, err
		}
		// Who signed is known for ever; when it expires is judged each time.
		v.manifests.Put(key, now, now.AddDate(1, 0, 0), m)
	}
	for _, c := range [][3]string{{"product", s.product, m.Product}, {"edition", s.edition, m.Edition}, {"version", s.version, m.Version}} {
		if !strings.EqualFold(c[1], c[2]) {
			return nil, fmt.Errorf("%s: expected %s, got %.64q", c[0], c[1], c[2])
		}
	}
	if !slices.ContainsFunc(m.Measurements, func(m rim.Measurement) bool { return m.Active }) {
		return nil, errors.New("expected measurements that count, got none")
	}
	return m, nil
}

// trustManifest wants a chain that ends in the root of manifests that belongs to
// the root of the device, each certificate issued by the next.
func (v *verifier) trustManifest(certs []*x509.Certificate, of root, now time.Time) error {
	last := certs[len(certs)-1]
	anchor, ok := find(v.rimRoots, last.Raw)
	if !ok || anchor.development != of.development {
		return fmt.Errorf("certificate %d (%.64s): expected the root of manifests, got another certificate", len(certs)-1, last.Subject.CommonName)
	}
	if len(certs) < 2 {
		return fmt.Errorf("expected the certificates of a signer and of the root, got %d", len(certs))
	}
	for i, c := range certs {
		err := checkForm(c)
		switch {
		case err != nil:
		case i == 0:
			err = checkLeaf(c)
		default:
			err = checkAuthority(c, i-1)
		}
		if err == nil && i+1 < len(certs) {
			err = issuedBy(c, certs[i+1])
		}
		if err == nil && now.Before(c.NotBefore) {
			err = fmt.Errorf("is not valid before %s", c.NotBefore.UTC().Format(time.RFC3339))
		}
		if err != nil {
			return fmt.Errorf("certificate %d (%.64s): %w", i, c.Subject.CommonName, err)
		}
	}
	return nil
}

// judge compares every active measurement with what the device reports. Index i
// of a manifest is measurement i+1 of a report.
func (d *device) judge(l *checks.List, sources []source, manifests []*rim.Manifest) {
	reported := map[int][]byte{}
	for _, m := range d.report.Measurements {
		reported[m.Index] = m.Value
	}
	var wrong []string
	by, conflict := map[int]string{}, false
	for i, m := range manifests {
		for _, one := range m.Measurements {
			if !one.Active || (d.Arch != nvidia.LS10 && one.Index == nvdecIndex && d.report.NVDEC0Disabled()) {
				continue
			}
			name := fmt.Sprintf("%s %d", sources[i].name, one.Index+1)
			if other, ok := by[one.Index]; ok {
				conflict, name = true, name+" (also in the manifest of the "+other+")"
				wrong = append(wrong, name)
			}
			by[one.Index] = sources[i].name
			if !slices.ContainsFunc(one.Values, func(v []byte) bool { return string(v) == string(reported[one.Index+1]) }) {
				wrong = append(wrong, name)
			}
		}
	}
	if d.Arch != nvidia.LS10 {
		d.claims["x-nvidia-gpu-vbios-index-no-conflict"] = !conflict
	}
	if len(wrong) == 0 {
		d.claims["measres"], d.claims["secboot"], d.claims["dbgstat"] = "success", true, "disabled"
		return
	}
	wrong = slices.Compact(wrong)
	d.claims["measres"] = "fail"
	mismatches := make([]any, len(wrong))
	for i, w := range wrong {
		mismatches[i] = w
	}
	d.claims["x-nvidia-measurement-mismatches"] = mismatches
	l.Warn(d.fail("nvidia.measurements", "evidence: measurements", "those of NVIDIA's manifests", "others: "+strings.Join(wrong, ", "),
		"the device runs a driver or firmware that is not as NVIDIA has published it; the appraisal policy decides"))
}
