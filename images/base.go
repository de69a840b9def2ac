package images

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/kofarm/kofarm/images/store"
)

// Program is a file of kofarm's own that an image holds, such as the recipe.
type Program struct {
	Path string // absolute
	Data []byte
}

// mountPoints are the folders that every runtime mounts something on, or that
// programs expect.
var mountPoints = []string{"dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/lib", "usr/sbin",
	"var/lib/dkms", "var/tmp", "usr/src", "usr/lib/modules"}

// mountPointModes are the modes of mount points that are not 0755: runc before
// 1.2 gives a tmpfs the mode of the folder that it covers.
var mountPointModes = map[string]int64{"root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777}

// rootLinks make the root of a system with a merged /usr.
var rootLinks = []string{"bin", "lib", "lib64", "sbin"}

// etc is what a build may look up: the maintainer scripts of base-passwd and
// base-files would have written these.
var etc = map[string]string{
	"etc/group":         "root:x:0:\nnogroup:x:65534:\n",
	"etc/hosts":         "127.0.0.1 localhost\n::1 localhost\n",
	"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
	"etc/passwd":        "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
}

// baseLayer makes the top layer: the program, mount points, the links of a
// merged /usr, and the few files of /etc.
func baseLayer(s *store.Store, p Program) (*store.Layer, error) {
	sum := sha256.Sum256(fmt.Appendf(nil, "kofarm layer %d base with modes\n%s\n%s", LayerFormat, p.Path, p.Data))
	return makeLayer(s, "base-"+hex.EncodeToString(sum[:]), func(w *layerWriter) error {
		for _, d := range mountPoints {
			if err := w.mountPoint(d, mountPointModes[d]); err != nil {
				return err
			}
		}
		for _, l := range rootLinks {
			if err := w.rootLink(l, "usr/"+l); err != nil {
				return err
			}
		}
		for _, name := range sortedKeys(etc) {
			if err := w.file(name, 0o644, etc[name]); err != nil {
				return err
			}
		}
		return w.file(p.Path, 0o755, string(p.Data))
	})
}
