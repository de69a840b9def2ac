// Package matrix reads farm.yaml, the description of a build farm, and expands it over a catalogue of
// kernels into cells: module version × kernel. It is pure: it opens no file and no connection.
//
// The way through:
//
//	farm, warnings, err := matrix.Parse("farm.yaml", data) // strict, every error with line and column
//	indexes := farm.Indexes()                              // what the caller has to open
//	… fill in Name and Version of farm.Modules where they are empty: only the source knows them …
//	plan, warnings, err := matrix.Expand(farm, catalogue)  // the cells, in a stable order
//
// Paths in a Farm (sources, headers, keyrings, the output directory) stay as they are written: they are
// relative to the folder of the farm file, and whoever opens them resolves them.
//
// A release is chosen by its name, by its ABI (6.1.0-56: every flavor of it), by a glob as of path.Match
// ("6.1.*") or by a range (">=6.1.0-50 <6.2"). The other axes are chosen by name or glob.
package matrix
