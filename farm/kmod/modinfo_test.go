package kmod

import (
	"bufio"
	"bytes"
	"os/exec"
	"strings"
	"testing"
)

// modinfoFields runs the real modinfo on a module and returns its fields; keys
// may repeat. modinfo joins the strings parm and parmtype of a parameter to one
// field at the end, so both are left out. It fails the test where modinfo is not installed (package kmod).
func modinfoFields(t *testing.T, path string) []KV {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), modinfo(t), "-0", path).Output()
	if err != nil {
		t.Fatalf("modinfo %s: %v", path, err)
	}
	var kvs []KV
	for field := range bytes.SplitSeq(out, []byte{0}) {
		key, value, ok := strings.Cut(string(field), "=")
		if ok && key != "filename" && !strings.HasPrefix(key, "parm:") {
			kvs = append(kvs, KV{key, value})
		}
	}
	return kvs
}

// modprobeVersions runs `modprobe --dump-modversions`, the one real reader of
// __versions.
func modprobeVersions(t *testing.T, path string) map[string]string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), tool(t, "modprobe"), "--dump-modversions", path).Output()
	if err != nil {
		t.Fatalf("modprobe --dump-modversions %s: %v", path, err)
	}
	versions := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		crc, name, _ := strings.Cut(lines.Text(), "\t")
		versions[name] = crc
	}
	return versions
}

func modinfo(t *testing.T) string { return tool(t, "modinfo") }

// tool finds a program that the tests need; /usr/sbin is not in every PATH.
func tool(t testing.TB, name string) string {
	t.Helper()
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	t.Fatalf("%s is not installed", name)
	return ""
}
