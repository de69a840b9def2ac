package repo

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/kofarm/kofarm/farm/sign"
)

// These change when the form of an index, a signature or a compressed file does: with this package,
// with klauspost/compress, ulikunitz/xz or go-crypto. Clients then see an update without news, which
// harms nobody; but it has to be meant.
var golden = map[string]string{
	"apt": "707fdfda8860ccfbab3e90dc36f89dc10a325911c21359321e755e56739b5833",
	"yum": "dae61e2a9782f39522c3ba6a3d17de2af5c4c0a6a51c433d64fa81dc8205b04d",
}

func TestGolden(t *testing.T) {
	key := fixedKey(t)
	dir := t.TempDir()
	a := testAPT(filepath.Join(dir, "apt"))
	a.Signer = key
	update(t, a, plainDeb(t, "foo", "1:1.0-1", "amd64"), plainDeb(t, "libbar", "2", "all"))
	y := &YUM{Dir: filepath.Join(dir, "yum"), Epoch: epoch, Signer: key}
	update(t, y, plainRPM(t, "foo", "1.0"), plainRPM(t, "bar", "2"))
	for name, want := range golden {
		files := snapshot(t, filepath.Join(dir, name))
		var list strings.Builder
		for _, f := range slices.Sorted(maps.Keys(files)) {
			fmt.Fprintf(&list, "%s %s\n", files[f], f)
		}
		if got := digestOf([]byte(list.String())).sha256; got != want {
			t.Errorf("%s: got %s, want %s, of\n%s", name, got, want, &list)
		}
	}
}

// fixedKey is the same key in every run; the world knows it.
func fixedKey(t *testing.T) *sign.Key {
	t.Helper()
	no := false
	return keyOf(t, packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Rand: rand.NewChaCha8([32]byte{1}), NonDeterministicSignaturesViaNotation: &no})
}

// plainDeb makes a package without any tool, whose bytes stay the same.
func plainDeb(t testing.TB, name, version, arch string) string {
	t.Helper()
	var control bytes.Buffer
	w := tar.NewWriter(&control)
	text := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: %s\nMaintainer: Farm <farm@example.org>\nDescription: a test\n more\n", name, version, arch)
	if err := w.WriteHeader(&tar.Header{Name: "./control", Size: int64(len(text)), Mode: 0o644, ModTime: epoch}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	b.WriteString("!<arch>\n")
	for _, m := range []struct {
		name string
		data []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar", control.Bytes()}, {"data.tar", make([]byte, 1024)}} {
		fmt.Fprintf(&b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, epoch.Unix(), 0, 0, "100644", len(m.data))
		b.Write(m.data)
		b.Write(make([]byte, len(m.data)%2))
	}
	return write(t, filepath.Join(t.TempDir(), "x.deb"), b.String())
}

const plainPayload = "payload"

// plainRPM makes a package without any tool, whose bytes stay the same.
func plainRPM(t testing.TB, name, version string) string {
	t.Helper()
	str := func(tag uint32, kind uint32, values ...string) tagData {
		return tagData{headerEntry{tag: tag, kind: kind, count: uint32(len(values))}, []byte(strings.Join(values, "\x00") + "\x00")}
	}
	num := func(tag uint32, values ...uint32) tagData {
		var data []byte
		for _, v := range values {
			data = binary.BigEndian.AppendUint32(data, v)
		}
		return tagData{headerEntry{tag: tag, kind: typeInt32, count: uint32(len(values))}, data}
	}
	payload := sha256.Sum256([]byte(plainPayload))
	main := newHeader(63, []tagData{ // RPMTAG_HEADERIMMUTABLE

		num(tagBuildTime, uint32(epoch.Unix())), num(tagSize, 7), num(tagProvideFlags, 8), num(tagDirIndexes, 0), num(tagFileFlags, 0),
		num(tagFileModes, 0o100644), num(tagChangelogTime, 5),
		str(tagName, typeString, name), str(tagVersion, typeString, version), str(tagRelease, typeString, "1"), str(tagArch, typeString, "x86_64"),
		str(tagSummary, typeI18N, "A <test>"), str(tagDescription, typeI18N, "of\nlines"), str(tagSourceRPM, typeString, name+".src.rpm"),
		str(tagProvideName, typeStringArray, name), str(tagProvideVersion, typeStringArray, version+"-1"),
		str(tagBaseNames, typeStringArray, "x.ko"), str(tagDirNames, typeStringArray, "/lib/modules/"),
		str(tagChangelogName, typeStringArray, "A B"), str(tagChangelogText, typeStringArray, "- first"),
		str(tagPayloadDigest, typeStringArray, hex.EncodeToString(payload[:])), num(5093, 8), str(1124, typeString, "cpio"), str(1125, typeString, "gzip"),
	})
	sum := sha256.Sum256(main)
	sig := newHeader(sigRegion, []tagData{num(sigPayloadSize, 10), str(273, typeString, hex.EncodeToString(sum[:]))})
	sig = append(sig, make([]byte, padded(int64(len(sig)))-int64(len(sig)))...)
	lead := append([]byte(leadMagic+"\x03"), make([]byte, leadSize-5)...)
	lead[79] = 5 // a signature header follows
	return write(t, filepath.Join(t.TempDir(), "x.rpm"), string(slices.Concat(lead, sig, main, []byte(plainPayload))))
}
