package arm64_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/kofarm/kofarm/ci/archive"
	"github.com/kofarm/kofarm/ci/rig"
)

// TestCustomKernel builds for an arm64 kernel of one's own, whose headers are
// Debian's: with programs in scripts/ that run here, and with those that do not.
func TestCustomKernel(t *testing.T) {
	r := build(t, t.TempDir(), rig.Store(t), strings.Replace(packed, "[amd64, arm64], flavors: [amd64, arm64]", "arm64, flavors: [arm64]", 1))
	c := r.Cells[len(r.Cells)-1]
	amd64, arm64 := archive.Open(t, "bookworm"), archive.OpenFor(t, "bookworm", "arm64")
	for name, tt := range map[string]struct {
		kbuild *archive.Suite
		code   int
		says   string
	}{
		"built here":      {amd64, 0, "1 built"},
		"built elsewhere": {arm64, 1, "failed: headers: the headers' own programs, such as scripts/basic/fixdep, do not run on x86_64: to build for aarch64 here, give headers whose scripts/ were built on x86_64"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var headers []string
			for _, p := range []struct {
				suite *archive.Suite
				name  string
			}{{arm64, "linux-headers-" + c.Release}, {arm64, "linux-headers-" + strings.TrimSuffix(c.Release, "arm64") + "common"}, {tt.kbuild, "linux-kbuild-6.1"}} {
				deb, _ := p.suite.Deb(t, p.name)
				run(t, dir, "ln", "-s", deb, p.name+".deb")
				headers = append(headers, p.name+".deb")
			}
			rig.Write(t, dir, "farm.yaml", farmOf("bookworm", theFive[:1], fmt.Sprintf("{release: %s, arch: arm64, headers: [%s], toolchain: {suite: bookworm, packages: [gcc-12, libelf1]}}",
				c.Release, strings.Join(headers, ", ")), ""))
			got := rig.Kofarm(t, tt.code, dir, rig.Store(t), "build")
			if !strings.Contains(got.Stdout, tt.says) {
				t.Errorf("it says\n%s\nwant %s", got.Stdout, tt.says)
			}
			if tt.code != 0 {
				return
			}
			log := run(t, dir, "sh", "-c", "cat dist/logs/*/*.log")
			if !strings.Contains(log, `by "aarch64-linux-gnu-gcc-12 `) {
				t.Errorf("by which compiler? %s", log)
			}
			if own := run(t, dir, "sh", "-c", "tar -xOf dist/*.dkms.tar.gz --wildcards '*.ko' | sha256sum"); own[:64] != c.Modules[0].SHA256 {
				t.Errorf("the module has sha256 %s, for the archive's kernel it has %s", own[:64], c.Modules[0].SHA256)
			}
		})
	}
}
