package workertest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/worker"
)

// forgery is an output that a build has written itself.
type forgery struct {
	name string
	data []byte
	want string // part of the error
}

func (f forgery) file() string { return strings.ReplaceAll(f.name, " ", "-") + ".tar" }

const forgedReport = `{"version":1,"outcome":"built","modules":[{"name":"m","location":"/updates"}]}`

// forgeries are archives of outputs that must be refused.
func forgeries(t testing.TB) []forgery {
	t.Helper()
	report := Entry{Name: "result.json", Data: forgedReport}
	module := Entry{Name: "module/m.ko", Data: "ELF"}
	whole := Tar(t, report, module)
	with := func(more ...Entry) []byte { return Tar(t, append([]Entry{report, module}, more...)...) }
	instead := func(kind byte, target string) []byte {
		return Tar(t, report, Entry{Name: "module/m.ko", Type: kind, Data: target})
	}
	says := func(json string) []byte { return Tar(t, Entry{Name: "result.json", Data: json}) }
	return []forgery{
		{"symbolic link", instead(tar.TypeSymlink, "/etc/shadow"), "not a regular file"},
		{"hard link", instead(tar.TypeLink, "/etc/shadow"), "not a regular file"},
		{"FIFO", instead(tar.TypeFifo, ""), "not a regular file"},
		{"character device", instead(tar.TypeChar, ""), "not a regular file"},
		{"block device", instead(tar.TypeBlock, ""), "not a regular file"},
		{"folder", Tar(t, report, Entry{Name: "module/m.ko/"}), "not a regular file"},
		{"name with a newline", with(Entry{Name: "module/a\nb.ko"}), "does not name"},
		{"name that is not UTF-8", with(Entry{Name: "module/\xff\xfe.ko"}), "does not name"},
		{"absolute name", with(Entry{Name: "/etc/passwd"}), "does not name"},
		{"name that leaves", with(Entry{Name: "../../x"}), "does not name"},
		{"installed name with a newline", with(Entry{Name: "files/a\nb"}), "not a plain path"},
		{"installed name that is not UTF-8", with(Entry{Name: "files/\xff"}), "not a plain path"},
		{"installed name that leaves", with(Entry{Name: "files/../../x"}), "not a plain path"},
		{"installed FIFO", with(Entry{Name: "files/x", Type: tar.TypeFifo}), "neither a file"},
		{"installed hard link", with(Entry{Name: "files/x", Type: tar.TypeLink, Data: "/etc/shadow"}), "neither a file"},
		{"twice the report", with(report), "twice"},
		{"twice the module", with(module), "twice"},
		{"two archives", append(bytes.Clone(whole), whole...), "after its end"},
		{"bytes after the end", append(bytes.Clone(whole), "more"...), "after its end"},
		{"cut in a header", whole[:512+256], ""},
		{"cut in a file", whole[:512+20], ""},
		{"sparse", sparse(t), "sparse"},
		{"claims a size", claiming(t), ""},
		{"nothing", nil, "no result.json"},
		{"noise", bytes.Repeat([]byte("noise"), 1000), ""},
		{"another outcome", says(`{"version":1,"outcome":"fine"}`), "is not known"},
		{"deep report", says(strings.Repeat("[", 20000)), "result.json"},
		{"a module elsewhere", says(strings.Replace(forgedReport, `"m"`, `"../../m"`, 1)), "no module name"},
		{"a module with a newline", says(strings.Replace(forgedReport, `"m"`, `"a\nb"`, 1)), "no module name"},
		{"a module that is not there", says(forgedReport), "lacks"},
	}
}

// sparse has a module of a gigabyte that is all hole, in 4 KiB: GNU tar's
// format 0.1 of sparse files.
func sparse(t testing.TB) []byte {
	t.Helper()
	record := func(key, value string) string {
		body := " " + key + "=" + value + "\n"
		for n := len(body); ; n++ {
			if line := fmt.Sprint(n) + body; len(line) == n {
				return line
			}
		}
	}
	pax := record("GNU.sparse.major", "0") + record("GNU.sparse.minor", "1") + record("GNU.sparse.name", "module/m.ko") +
		record("GNU.sparse.size", "1073741824") + record("GNU.sparse.numblocks", "1") + record("GNU.sparse.map", "1073741824,0")
	var b bytes.Buffer
	b.Write(unended(t, Entry{Name: "result.json", Data: forgedReport}))
	raw := unended(t, Entry{Name: "PaxHeaders/m.ko", Data: pax})
	raw[156] = 'x'
	b.Write(checksummed(raw))
	b.Write(Tar(t, Entry{Name: "module/m.ko", Type: tar.TypeReg}))
	return b.Bytes()
}

// claiming has a header that claims 8 GiB, and 3 bytes.
func claiming(t testing.TB) []byte {
	t.Helper()
	raw := Tar(t, Entry{Name: "result.json", Data: "{}}"})
	copy(raw[124:], "77777777777\x00")
	return checksummed(raw)
}

// unended is an archive without its end, so that more can follow.
func unended(t testing.TB, e Entry) []byte {
	t.Helper()
	raw := Tar(t, e)
	return raw[:len(raw)-1024]
}

// checksummed sets the checksum of an archive's first header (POSIX ustar).
func checksummed(raw []byte) []byte {
	copy(raw[148:156], "        ")
	sum := 0
	for _, c := range raw[:512] {
		sum += int(c)
	}
	copy(raw[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return raw
}

func (s *isolation) archives(t *testing.T) {
	limits := small
	limits.Output = 1 << 20
	for _, f := range forgeries(t) {
		t.Run(f.name, func(t *testing.T) {
			d := s.attack(t, limits, Busybox, "cat", archivesDir+"/"+f.file())
			if d.out != string(f.data) {
				t.Errorf("%d bytes of %d have arrived", len(d.out), len(f.data))
			}
			out, err := worker.ReadOutput(strings.NewReader(d.out), int64(len(d.out)))
			if err == nil || !strings.Contains(err.Error(), f.want) {
				t.Errorf("got %+v, error %v, want one with %q", out, err, f.want)
			}
		})
	}
}

// forgery writes a forged output before the recipe's own, past what the recipe
// has closed: a file of it, or a whole archive.
func (s *isolation) forgery(t *testing.T) {
	limits := small
	limits.Output = 1 << 20
	whole := archivesDir + "/" + forgery{name: "two archives"}.file() // each of 3072 bytes
	for _, size := range []string{"1024", "3072"} {
		for way, reaches := range map[string]bool{"/proc/1/fd/3": true, "/proc/1/fd/1": false, "/dev/fd/3": false, "/dev/stdout": false} {
			script := "exec 3>&1 1>&2; (head -c " + size + " " + whole + " > " + way + ") 3>&-; exec head -c 3072 " + whole + " >&3"
			d := s.attack(t, limits, shell(script)...)
			out, err := worker.ReadOutput(strings.NewReader(d.out), int64(len(d.out)))
			if reaches != (len(d.out) > 3072) || reaches == (err == nil) {
				t.Errorf("%s, %s bytes: %d have arrived, taken for %+v, %v", way, size, len(d.out), out, err)
			}
		}
	}
}
