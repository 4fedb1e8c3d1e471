package cli

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/collateral"
	"github.com/coffer-project/coffer/tee/snp"
)

// maxEvidenceFile bounds a file of evidence.
const maxEvidenceFile = 8 << 20

// fetchFlags are the flags of `coffer collateral fetch`.
type fetchFlags struct {
	tee, evidence              string
	vcek, chip, tcb            string
	fmspc, kind, update        string
	rims, hygon                []string
	crl                        bool
	kds, pcs, rimURL, hygonURL string
	timeout                    time.Duration
}

func (g *collateralGroup) fetchCommand() *cobra.Command {
	var f fetchFlags
	c := &cobra.Command{
		Use: "fetch", Short: "Fetch collateral from the vendors' services",
		Long: `Fetch collateral from the vendors' services, or mirrors of them, check it and keep it in
the directory of collateral. What is there and good for a while yet is not fetched again.

Either name evidence, for what its check needs, or the items. A service that allows few
requests is asked at the pace it allows, for as long as --timeout.

Exit status 1 means that something could not be had.`,
		Example: `  coffer collateral fetch --tee tdx --evidence quote.dat
  coffer collateral fetch --vcek Milan --chip-id 0f3a… --tcb bl=4,tee=0,snp=24,ucode=219 --crl
  coffer collateral fetch --fmspc 00A06D080000 --pcs https://pccs.example:8081`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return g.fetch(c.Context(), f) },
	}
	fl := c.Flags()
	fl.StringVar(&f.tee, "tee", "", "what --evidence is of: snp, tdx, sgx, az-snp-vtpm, az-tdx-vtpm or csv")
	fl.StringVar(&f.evidence, "evidence", "", "fetch what this evidence needs: a raw report or quote, or evidence JSON; - is standard input")
	fl.StringVar(&f.vcek, "vcek", "", "fetch an AMD chip's certificate: the generation (Milan, Genoa, Turin); with --evidence, that of a report that does not say")
	fl.StringVar(&f.chip, "chip-id", "", "the chip's identifier in hex, with --vcek")
	fl.StringVar(&f.tcb, "tcb", "", "the chip's patch levels, with --vcek: bl=N,tee=N,snp=N,ucode=N, on Turin also fmc=N")
	fl.StringVar(&f.fmspc, "fmspc", "", "fetch what quotes of this Intel platform family need (12 hex digits)")
	fl.StringVar(&f.kind, "kind", "tdx", "tdx or sgx, with --fmspc")
	fl.StringVar(&f.update, "update", "standard", "Intel's track: standard or early")
	fl.BoolVar(&f.crl, "crl", false, "fetch AMD's revocation lists too: with --vcek of that generation, else of all")
	fl.StringSliceVar(&f.rims, "rim", nil, "fetch NVIDIA's manifests of these identifiers")
	fl.StringSliceVar(&f.hygon, "hygon", nil, "fetch the certificates of Hygon chips with these serial numbers")
	fl.StringVar(&f.kds, "kds", "", "URL of a mirror of AMD's key service")
	fl.StringVar(&f.pcs, "pcs", "", "URL of a PCCS, or a mirror of Intel's service")
	fl.StringVar(&f.rimURL, "rim-service", "", "URL of a mirror of NVIDIA's manifests")
	fl.StringVar(&f.hygonURL, "hygon-service", "", "URL of a mirror of Hygon's service")
	fl.DurationVar(&f.timeout, "timeout", 10*time.Minute, "how long to try at most")
	return c
}

func (g *collateralGroup) fetch(ctx context.Context, f fetchFlags) error {
	if f.kind != "tdx" && f.kind != "sgx" {
		return usagef("--kind: expected tdx or sgx, got %.40q", f.kind)
	}
	if f.update != string(collateral.Standard) && f.update != string(collateral.Early) {
		return usagef("--update: expected standard or early, got %.40q", f.update)
	}
	if g := snp.Generation(f.vcek); f.vcek != "" && g != snp.Milan && g != snp.Genoa && g != snp.Turin {
		return usagef("--vcek: expected Milan, Genoa or Turin, got %.40q", f.vcek)
	}
	items, err := g.wanted(f)
	if err != nil {
		return err
	}
	dir, err := g.directory()
	if err != nil {
		return err
	}
	checks, err := g.checks()
	if err != nil {
		return err
	}
	if f.timeout <= 0 {
		return usagef("--timeout: expected a time above zero, got %s", f.timeout)
	}
	client, err := collateral.New(collateral.Options{
		Dir: dir, Checks: checks, Update: collateral.Update(f.update), HTTP: &http.Client{}, Patience: f.timeout, OnEvent: g.progress,
		Endpoints: collateral.Endpoints{KDS: f.kds, PCS: f.pcs, RIM: f.rimURL, Hygon: f.hygonURL},
	})
	if err != nil {
		return usageError{err}
	}
	defer func() { _ = client.Close() }() // what was fetched is on disk
	ctx, stop := notifyInterrupt(ctx)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	return g.fetchAll(ctx, client, dir, items)
}

// progress tells on standard error what goes on.
func (g *collateralGroup) progress(e collateral.Event) {
	switch e.Type {
	case collateral.EventFetch:
		_, _ = fmt.Fprintf(g.env.Stderr, "fetching %s\n", clean(e.Source))
	case collateral.EventThrottled:
		_, _ = fmt.Fprintf(g.env.Stderr, "the service wants to be left alone: waiting %s\n", e.Wait.Round(time.Second))
	case collateral.EventDamaged:
		_, _ = fmt.Fprintf(g.env.Stderr, "%s is damaged and set aside: %s\n", clean(e.Source), clean(e.Err.Error()))
	case collateral.EventNotStored:
		_, _ = fmt.Fprintf(g.env.Stderr, "%s could not be kept: %s\n", e.Item, clean(e.Err.Error()))
	}
}

// fetchFailure is an item that could not be had.
type fetchFailure struct {
	Item   collateral.Item      `json:"item"`
	Reason tee.CollateralReason `json:"reason"`
	Error  string               `json:"error"`
	Help   string               `json:"help"`
}

func (g *collateralGroup) fetchAll(ctx context.Context, client *collateral.Client, dir string, items []collateral.Item) error {
	got, failed := []collateralItem{}, []fetchFailure{}
	var errs []error
	for _, i := range items {
		e, fresh, err := client.Fetch(ctx, i)
		if err != nil {
			failure := fetchFailure{Item: i, Error: err.Error()}
			if c, ok := errors.AsType[*tee.CollateralError](err); ok {
				failure.Reason, failure.Help = c.Reason, c.Help()
				err = hint.New(err, c.Help())
			}
			failed, errs = append(failed, failure), append(errs, err)
			continue
		}
		item := newCollateralItem(e, g.now())
		if item.Status = "known"; fresh {
			item.Status = "fetched"
		}
		got = append(got, item)
	}
	err := g.table(struct {
		Dir    string           `json:"dir"`
		Items  []collateralItem `json:"items"`
		Failed []fetchFailure   `json:"failed"`
	}{dir, got, failed}, collateralHeader, func(w io.Writer) {
		for _, i := range got {
			collateralRow(w, i)
		}
	})
	if err != nil || len(errs) == 0 {
		return err
	}
	for _, e := range errs[:len(errs)-1] {
		_ = g.report(g.env.Stderr, e)
	}
	return errs[len(errs)-1]
}

// wantList collects the items that the flags name, each once.
type wantList []collateral.Item

func (l *wantList) add(flag string, items []collateral.Item, err error) error {
	if err != nil {
		return usagef("%s: %w", flag, err)
	}
	for _, i := range items {
		if !slices.Contains(*l, i) {
			*l = append(*l, i)
		}
	}
	return nil
}

func (l *wantList) addOne(flag string, i collateral.Item, err error) error {
	return l.add(flag, []collateral.Item{i}, err)
}

// wanted are the items that the flags name.
func (g *collateralGroup) wanted(f fetchFlags) ([]collateral.Item, error) {
	var out wantList
	for _, of := range []func(fetchFlags, *wantList) error{g.wantEvidence, wantVCEK, wantCRLs, wantIntel, wantOthers} {
		if err := of(f, &out); err != nil {
			return nil, err
		}
	}
	if len(out) == 0 {
		return nil, usageError{hint.New(errors.New("nothing to fetch"), "name evidence (--tee, --evidence) or items (--vcek, --crl, --fmspc, --rim, --hygon)")}
	}
	return out, nil
}

func (g *collateralGroup) wantEvidence(f fetchFlags, out *wantList) error {
	if (f.tee == "") != (f.evidence == "") {
		return usagef("--tee and --evidence: expected both or none")
	}
	if f.evidence == "" {
		return nil
	}
	data, err := g.readLimited(f.evidence, maxEvidenceFile)
	if err != nil {
		return usagef("--evidence: %w", err)
	}
	items, err := collateral.Needs(tee.Name(f.tee), data, snp.Generation(f.vcek), collateral.Update(f.update))
	if errors.Is(err, collateral.ErrGeneration) {
		return usageError{hint.New(fmt.Errorf("--evidence: %w", err), "say which: --vcek Milan, Genoa or Turin")}
	}
	return out.add("--evidence", items, err)
}

func wantVCEK(f fetchFlags, out *wantList) error {
	switch {
	case f.evidence != "": // --vcek says of which generation it is
		return nil
	case f.vcek == "" && f.chip == "" && f.tcb == "":
		return nil
	case f.vcek == "":
		return usagef("--chip-id and --tcb belong to --vcek GENERATION")
	}
	id, err := hexOf("--chip-id", f.chip, 8, 64)
	if err != nil {
		return err
	}
	levels, err := parseTCB(f.tcb)
	if err != nil {
		return err
	}
	i, err := collateral.VCEKItem(snp.Generation(f.vcek), id, levels)
	return out.addOne("--vcek", i, err)
}

func wantCRLs(f fetchFlags, out *wantList) error {
	if !f.crl {
		return nil
	}
	for _, generation := range []snp.Generation{snp.Milan, snp.Genoa, snp.Turin} {
		if f.vcek != "" && f.vcek != string(generation) {
			continue
		}
		for _, s := range []snp.Signer{snp.SignerVCEK, snp.SignerVLEK} {
			i, err := collateral.AMDItem(collateral.AMDCRL, generation, s)
			if err := out.addOne("--crl", i, err); err != nil {
				return err
			}
		}
	}
	return nil
}

func wantIntel(f fetchFlags, out *wantList) error {
	if f.fmspc == "" {
		return nil
	}
	id, err := hexOf("--fmspc", f.fmspc, 6)
	if err != nil {
		return err
	}
	items, err := collateral.IntelNeeds(f.kind, [6]byte(id), []string{"platform", "processor"}, collateral.Update(f.update))
	return out.add("--fmspc", items, err)
}

func wantOthers(f fetchFlags, out *wantList) error {
	for _, id := range f.rims {
		i, err := collateral.RIMItem(id)
		if err := out.addOne("--rim", i, err); err != nil {
			return err
		}
	}
	for _, serial := range f.hygon {
		i, err := collateral.HSKCEKItem(serial)
		if err := out.addOne("--hygon", i, err); err != nil {
			return err
		}
	}
	return nil
}

// hexOf reads hex digits of one of the lengths in bytes.
func hexOf(flag, text string, lengths ...int) ([]byte, error) {
	b, err := hex.DecodeString(text)
	if err != nil || !slices.Contains(lengths, len(b)) {
		either := make([]string, len(lengths))
		for i, n := range lengths {
			either[i] = strconv.Itoa(n)
		}
		return nil, usagef("%s: expected %s bytes in hex, got %.200q", flag, strings.Join(either, " or "), text)
	}
	return b, nil
}

// parseTCB reads patch levels: bl=4,tee=0,snp=24,ucode=219[,fmc=1].
func parseTCB(text string) (snp.TCB, error) {
	var t snp.TCB
	var fmc uint8
	levels := map[string]*uint8{"bl": &t.Bootloader, "tee": &t.TEE, "snp": &t.SNP, "ucode": &t.Microcode, "fmc": &fmc}
	for part := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(part, "=")
		to := levels[name]
		n, err := strconv.ParseUint(value, 10, 8)
		if to == nil || err != nil {
			return t, usagef("--tcb: expected bl=N,tee=N,snp=N,ucode=N and on Turin fmc=N, each once, of 0 to 255, got %.200q", text)
		}
		*to = uint8(n)
		if name == "fmc" {
			t.FMC = &fmc
		}
		delete(levels, name)
	}
	delete(levels, "fmc")
	for name := range levels {
		return t, usagef("--tcb: %s is missing in %.200q", name, text)
	}
	return t, nil
}
