package repo

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// many are 500 packages of 100 kB each.
func many(b *testing.B, one func(name string) string) []File {
	b.Helper()
	payload := make([]byte, 100_000)
	dir := b.TempDir()
	var all []File
	for i := range 500 {
		data, err := os.ReadFile(one(fmt.Sprintf("foo%d", i)))
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, File{write(b, filepath.Join(dir, fmt.Sprint(i)), string(append(data, payload...)))})
	}
	return all
}

func BenchmarkAPT500(b *testing.B) {
	debs := many(b, func(name string) string { return plainDeb(b, name, "1", "amd64") })
	a := testAPT("")
	a.Signer = edKey(b)
	for b.Loop() {
		a.Dir = b.TempDir()
		update(b, a, paths(debs)...)
	}
}

func BenchmarkYUM500(b *testing.B) {
	rpms := many(b, func(name string) string { return plainRPM(b, name, "1") })
	y := &YUM{Epoch: epoch, Signer: edKey(b)}
	for b.Loop() {
		y.Dir = b.TempDir()
		update(b, y, paths(rpms)...)
	}
}

// BenchmarkCreaterepo500 is the real tool on the same files; it neither copies nor signs.
func BenchmarkCreaterepo500(b *testing.B) {
	dir := b.TempDir()
	for i, f := range many(b, func(name string) string { return plainRPM(b, name, "1") }) {
		if err := os.Rename(f.Path, filepath.Join(dir, fmt.Sprintf("%d.rpm", i))); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		run(b, "createrepo_c", "--quiet", "--no-database", dir)
	}
}

func paths(files []File) []string {
	var all []string
	for _, f := range files {
		all = append(all, f.Path)
	}
	return all
}
