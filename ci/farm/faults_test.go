package farm_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"github.com/kofarm/kofarm/ci/rig"
)

// archive is the real one, where a faulty mirror gets what it does not spoil.
const archive = "http://deb.debian.org/debian"

// mirror serves the real archive, less what spoil answers itself.
func mirror(t *testing.T, spoil func(w http.ResponseWriter, r *http.Request) bool) string {
	t.Helper()
	real, err := url.Parse(archive)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(real)
		r.Out.Host = real.Host
	}}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !spoil(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s.URL
}

// fetched gets a file from the real archive, be it at another try, for as long as
// who asks waits.
func fetched(r *http.Request) []byte {
	for ; r.Context().Err() == nil; time.Sleep(time.Second) {
		resp, err := http.Get(archive + r.URL.Path)
		if err != nil {
			continue
		}
		data, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err == nil && resp.StatusCode == http.StatusOK {
			return data
		}
	}
	panic(http.ErrAbortHandler)
}

// The faults of mirrors.

// hang accepts, and never answers.
func hang(_ http.ResponseWriter, r *http.Request) bool {
	<-r.Context().Done()
	return true
}

func status500(w http.ResponseWriter, _ *http.Request) bool {
	http.Error(w, "out of order", http.StatusInternalServerError)
	return true
}

// debs spoils the content of the named package.
func debs(name string, spoil func([]byte) []byte) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(path.Base(r.URL.Path), name+"_") {
			return false
		}
		_, _ = w.Write(spoil(fetched(r)))
		return true
	}
}

func flipped(data []byte) []byte {
	data[len(data)/2] ^= 1
	return data
}

func truncated(data []byte) []byte { return data[:len(data)/2] }

// inRelease serves another InRelease.
func inRelease(make func([]byte) []byte) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if path.Base(r.URL.Path) != "InRelease" {
			return false
		}
		_, _ = w.Write(make(fetched(r)))
		return true
	}
}

// signed is a mirror's InRelease which a key of the test's own has signed, and
// that key's file.
func signed(t *testing.T, text string) (_ func(http.ResponseWriter, *http.Request) bool, keyring string) {
	t.Helper()
	key, err := openpgp.NewEntity("Test", "", "test@example.org", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA})
	if err != nil {
		t.Fatal(err)
	}
	var public, release bytes.Buffer
	if err := key.Serialize(&public); err != nil {
		t.Fatal(err)
	}
	w, err := clearsign.Encode(&release, key.PrivateKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	release.WriteByte('\n')
	return inRelease(func([]byte) []byte { return release.Bytes() }), rig.Write(t, t.TempDir(), "test.gpg", public.String())
}

// expiredRelease is past its Valid-Until.
const expiredRelease = `Origin: Debian
Suite: oldstable
Codename: bookworm
Date: Mon, 06 Jan 2020 00:00:00 UTC
Valid-Until: Mon, 13 Jan 2020 00:00:00 UTC
Architectures: amd64
Components: main
SHA256:
 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 0 main/binary-amd64/Packages
`

// hello is the source of a module that needs nothing.
var hello = map[string]string{
	"dkms.conf": "PACKAGE_NAME=hello\nPACKAGE_VERSION=1.0\nBUILT_MODULE_NAME[0]=hello\nDEST_MODULE_LOCATION[0]=/updates\n",
	"Makefile":  "obj-m += hello.o\n",
	"hello.c":   "#include <linux/module.h>\nMODULE_LICENSE(\"GPL\");\nint init_module(void) { return 0; }\n",
}

func helloDir(t testing.TB, dir string) {
	t.Helper()
	for name, text := range hello {
		rig.Write(t, dir, filepath.Join("hello", name), text)
	}
}

// helloFarm builds hello from the source for one kernel, from mirrors if any
// are given.
func helloFarm(source, more string, mirrors ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "modules:\n  - source: %s\n    %s\nkernels:\n  - suite: bookworm\n    releases: [{latest: 1, of: \"6.1.*\"}]\n    flavors: [amd64]\nbuild: {retries: 0}\n", source, more)
	if len(mirrors) > 0 {
		fmt.Fprintf(&b, "archives:\n  debian:\n    mirrors: [%s]\n", strings.Join(mirrors, ", "))
	}
	return b.String()
}

// TestMirrorFaults runs on mirrors with faults. Each says what is wrong, and
// leaves a store on which the same farm builds from a good mirror.
func TestMirrorFaults(t *testing.T) {
	store, _ := reference(t)
	expired, keyring := signed(t, expiredRelease)
	tests := []struct {
		name  string
		spoil func(http.ResponseWriter, *http.Request) bool
		more  string   // of the module: packages that the store does not have yet
		set   string   // of the archive
		want  []string // words of the message
	}{
		{"hangs", hang, "", "", []string{"InRelease", "timeout"}}, // and the real one need not be heard
		{"answers 500", status500, "", "", []string{"InRelease", "500"}},
		{"wrong bytes in a package", debs("sl", flipped), "build-packages: [sl]", "", []string{"sl_", "wrong content", "sha256"}},
		{"truncated package", debs("pv", truncated), "build-packages: [pv]", "", []string{"pv_", "ended at", "bytes"}},
		{"package is not there", func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasPrefix(path.Base(r.URL.Path), "tree_") {
				http.NotFound(w, r)
				return true
			}
			return false
		}, "build-packages: [tree]", "", []string{"tree_", "not found"}},
		{"InRelease changed", inRelease(flipped), "", "", []string{"InRelease", "signature"}},
		{"InRelease not signed", inRelease(func([]byte) []byte { return []byte(expiredRelease) }), "", "", []string{"InRelease", "sign"}},
		{"InRelease by another key", expired, "", "", []string{"InRelease", "sign", "key"}},
		{"InRelease expired", expired, "", "keyring: " + keyring, []string{"expired", "2020", "allow-expired"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := rig.Folder(t)
			helloDir(t, dir)
			farm := helloFarm("{dir: hello}", tt.more, mirror(t, tt.spoil))
			if tt.set != "" {
				farm += "    " + tt.set + "\n"
			}
			rig.Write(t, dir, "farm.yaml", farm)
			r := rig.Kofarm(t, 3, dir, store, "--stall-timeout", map[bool]string{true: "1s", false: "1m"}[tt.name == "hangs"], "build")
			says(t, r.Stderr, tt.want...)
			noTemporaries(t, store, filepath.Join(dir, "dist"))
			rig.Write(t, dir, "farm.yaml", helloFarm("{dir: hello}", tt.more))
			rig.Kofarm(t, 0, dir, store, "build")
		})
	}
}

// says wants all words in a message.
func says(t *testing.T, message string, want ...string) {
	t.Helper()
	t.Logf("%s", message)
	for _, w := range want {
		if !strings.Contains(message, w) {
			t.Errorf("the message does not say %q:\n%s", w, message)
		}
	}
}

// TestSecondMirror builds although the first mirror has one fault or another.
func TestSecondMirror(t *testing.T) {
	store, _ := reference(t)
	for name, spoil := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"hangs": hang, "answers 500": status500, "wrong bytes": debs("figlet", flipped),
	} {
		t.Run(name, func(t *testing.T) {
			dir := rig.Folder(t)
			helloDir(t, dir)
			more := ""
			if name == "wrong bytes" {
				more = "build-packages: [figlet]"
			}
			rig.Write(t, dir, "farm.yaml", helloFarm("{dir: hello}", more, mirror(t, spoil), archive))
			rig.Kofarm(t, 0, dir, store, "--stall-timeout", "10s", "build") // the second is the real one
		})
	}
}

// tarball makes a tarball of hello, with entries before it.
func tarball(t testing.TB, before ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, h := range before {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range hello {
		if err := w.WriteHeader(&tar.Header{Name: "hello-1.0/" + name, Mode: 0o644, Size: int64(len(text)), ModTime: time.Unix(1e9, 0)}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestSourceFaults gives sources with faults, which are mistakes of the farm
// file's: it names the place.
func TestSourceFaults(t *testing.T) {
	store, _ := reference(t)
	good := tarball(t)
	sum := sha256.Sum256(good)
	right, wrong := hex.EncodeToString(sum[:]), strings.Repeat("0", 64)
	link := func(kind byte, name, target string) []byte {
		return tarball(t, &tar.Header{Typeflag: kind, Name: name, Linkname: target})
	}
	remote := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/hello.tar.gz" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(good)
	}))
	defer remote.Close()
	tests := []struct {
		name, source string
		data         []byte // of hello.tar.gz
		code         int
		want         []string
	}{
		{"good", "{tarball: hello.tar.gz, sha256: " + right + "}", good, 0, nil},
		{"good and remote", "{tarball: " + remote.URL + "/hello.tar.gz, sha256: " + right + "}", nil, 0, nil},
		{"broken", "{tarball: hello.tar.gz}", truncated(good), 2, []string{"farm.yaml:2:13", "hello.tar.gz", "unexpected EOF"}},
		{"no tarball", "{tarball: hello.tar.gz}", []byte("<html>"), 2, []string{"farm.yaml:2:13", "hello.tar.gz", "tarball"}},
		{"missing", "{tarball: hallo.tar.gz}", good, 2, []string{"farm.yaml:2:13", "hallo.tar.gz", "no such file"}},
		{"wrong sha256", "{tarball: hello.tar.gz, sha256: " + wrong + "}", good, 2, []string{"farm.yaml:2:13", right, wrong}},
		{"wrong sha256, remote", "{tarball: " + remote.URL + "/hello.tar.gz, sha256: " + wrong + "}", nil, 2, []string{"farm.yaml:2:13", right, wrong}},
		{"not there, remote", "{tarball: " + remote.URL + "/hallo.tar.gz, sha256: " + wrong + "}", nil, 2, []string{"farm.yaml:2:13", "404"}},
		{"a path that leaves", "{tarball: hello.tar.gz}", link(tar.TypeReg, "hello-1.0/../../../etc/passwd", ""), 2, []string{"farm.yaml:2:13", "../../../etc/passwd", "leaves"}},
		{"an absolute path", "{tarball: hello.tar.gz}", link(tar.TypeReg, "/etc/passwd", ""), 2, []string{"/etc/passwd", "leaves"}},
		{"a hard link out", "{tarball: hello.tar.gz}", link(tar.TypeLink, "hello-1.0/x", "../../etc/shadow"), 2, []string{"../../etc/shadow", "leaves"}},
		{"a device", "{tarball: hello.tar.gz}", link(tar.TypeBlock, "hello-1.0/sda", ""), 2, []string{"hello-1.0/sda", "no file, folder or link"}},
		{"a folder without dkms.conf", "{dir: .}", nil, 2, []string{"farm.yaml:2:13", "no dkms.conf"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := rig.Folder(t)
			if tt.data != nil {
				rig.Write(t, dir, "hello.tar.gz", string(tt.data))
			}
			rig.Write(t, dir, "farm.yaml", helloFarm(tt.source, ""))
			r := rig.Kofarm(t, tt.code, dir, store, "build")
			says(t, r.Stderr, tt.want...)
			noTemporaries(t, store, filepath.Join(dir, "dist"))
		})
	}
}

// TestFullDisk gives the store a file system that is too small, and then one
// that is not.
func TestFullDisk(t *testing.T) {
	common, _ := reference(t)
	dir := rig.Folder(t)
	helloDir(t, dir)
	rig.Write(t, dir, "farm.yaml", helloFarm("{dir: hello}", ""))
	blobs := rig.Write(t, dir, "blobs", "")
	if err := os.Remove(blobs); err != nil {
		t.Fatal(err)
	}
	// The finished downloads are linked from outside, so that the small file
	// system fills with layers.
	r := rig.Run(t, dir, []string{"COMMON=" + common, "KOFARM=" + rig.Binary(t)}, "unshare", "-m", "sh", "-euc", `
		mkdir store
		mount -t tmpfs -o size=150m none store
		mkdir -p store/blobs/sha256
		for b in "$COMMON"/blobs/sha256/*; do
			head -c 7 "$b" | grep -q '^!<arch>' && ln -s "$b" store/blobs/sha256/ || :
		done
		code=0; "$KOFARM" --store store build || code=$?
		echo "code $code; left: $(ls store/tmp) $(ls -A store/run/layers)"
		mount -o remount,size=3g store
		code=0; "$KOFARM" --store store build || code=$?
		echo "code $code"`)
	if want := "code 3; left:  \n"; !strings.Contains(r.Stdout, want) || !strings.HasSuffix(r.Stdout, "code 0\n") {
		t.Errorf("got %q, want %q and then code 0\n%s", r.Stdout, want, r.Stderr)
	}
	says(t, r.Stderr, "no space left on device")
}
