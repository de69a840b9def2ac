package images

import (
	"path/filepath"
	"strings"
)

// Names that only kofarm gives. Files and folders with them, and .git, are no part
// of a folder that is a source.
const (
	DifferencesName = "kofarm-differences" // what a verification leaves
	TempPrefix      = ".kofarm-tmp-"       // what is being written
)

// neverSource says whether what has that name is left out of every folder. A .git
// may also be a file that holds a path: of a submodule or worktree.
func neverSource(name string) bool {
	return name == ".git" || name == DifferencesName || strings.HasPrefix(name, TempPrefix)
}

// within gives which of the files lie in a folder, relative to it: by their own
// places, and by those of what they are links to. The folder itself is ".".
func within(dir string, files []string) map[string]bool {
	dir = realPath(dir)
	in := map[string]bool{}
	for _, f := range files {
		place := filepath.Join(realPath(filepath.Dir(f)), filepath.Base(f))
		for _, at := range []string{place, realPath(f)} {
			if rel, err := filepath.Rel(dir, at); err == nil && filepath.IsLocal(rel) {
				in[filepath.ToSlash(rel)] = true
			}
		}
	}
	return in
}

// realPath is the absolute path without links, as far as it is there.
func realPath(p string) string {
	if abs, err := filepath.Abs(p); err == nil {
		p = abs
	}
	rest := ""
	for dir := p; ; dir = filepath.Dir(dir) {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			return filepath.Join(real, rest)
		}
		if dir == filepath.Dir(dir) {
			return p
		}
		rest = filepath.Join(filepath.Base(dir), rest)
	}
}
