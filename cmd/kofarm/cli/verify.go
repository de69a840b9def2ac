package cli

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kofarm/kofarm/images"
	"github.com/kofarm/kofarm/matrix"
)

func (a *app) verifyCommand() *cobra.Command {
	var f rebuildFlags
	var p provenanceFlags
	cmd := &cobra.Command{
		Use:   "verify [farm.yaml] [FILE...]",
		Short: "Build results again with everything varied that should not matter, and compare; or check where files are from",
		Long: `verify builds cells again and compares every byte: all that the store has results of,
those that --cell chooses, or those which may have made the files that are given
(modules, DKMS tarballs, debs, RPMs). Signatures and the compression of modules do
not count.

The rebuild has another store, umask, time zone and locale, and as root, where the
embedded runtime and an ordinary user can reach the store, another user. Inside the
container the clock, the order in which folders are listed, the host name, the
user, the number of processors and make's -j are others; static programs see the
real ones. For what differs, more rebuilds find out which of these alone is enough.

` + provenanceHelp + `

Exit status: 0 all is reproduced, or verified; 1 something differs, or is refused; 2
wrong usage or a mistake in the farm file; 3 something cannot be verified; 130
interrupted.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if p.provenance {
				return a.verifyProvenance(cmd.Context(), args, p)
			}
			if p != (provenanceFlags{}) {
				return errors.New("--key, --certificate, --issuer, --builder and --statement go with --provenance")
			}
			file, paths := farmArgs(args)
			return a.rebuild(cmd.Context(), file, paths, f)
		},
	}
	flags := cmd.Flags()
	p.register(flags)
	cellFlag(cmd, &f.cells, "verify")
	flags.StringSliceVar(&f.runtimes, "runtime", nil, "what runs the containers, one after the other: "+strings.Join(matrix.Runtimes(), ", ")+" (default: the farm file's build.runtime, else embedded)")
	flags.StringVarP(&f.output, "output", "o", "", "`folder` with the packages and results.json (default: the farm file's output.directory)")
	flags.StringVar(&f.dir, "differences", images.DifferencesName, "`folder` for both versions of what differs, and diffoscope's reports where that is installed")
	flags.IntVarP(&f.parallel, "parallel", "j", 0, "`builds` at a time (default: the farm file's build.parallel, else one for each core)")
	return cmd
}
