package attest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdxlib"

	"github.com/kofarm/kofarm/farm/modsign"
)

var update = flag.Bool("update", false, "write the goldens anew")

func hexOf(c string) string { return strings.Repeat(c, 64) }

func deb(name, version, c string) Package {
	return Package{Name: name, Version: version, Arch: "amd64", SHA256: hexOf(c), Distribution: "debian", Suite: "bookworm",
		Path: "pool/main/" + name[:1] + "/" + name + "_" + version + "_amd64.deb", Size: 1234}
}

var builder = Builder{ID: "https://example.org/farm", Version: "v1.2.3"}

func single() *Artifact {
	source := deb("hello-dkms", "1.0-1", "1")
	source.Arch = "all"
	return &Artifact{
		Files: []File{{"hello-1.0-kernel6.1.0-1-amd64-x86_64.dkms.tar.gz", hexOf("a")}}, Kind: "dkms binaries-only", Module: "hello", Version: "1.0",
		MakeArgs: []string{"V=1 <&>"}, Options: map[string]any{"compression": "gz"}, Epoch: time.Unix(1_700_000_000, 0),
		Source: Source{SHA256: hexOf("1"), Package: &source}, Recipe: hexOf("2"), LayerFormat: 2, Built: true,
		Cells: []Cell{{Kernel: "6.1.0-1-amd64", Arch: "x86_64", Distribution: "debian", Suite: "bookworm", Key: hexOf("b"),
			Toolchain: []Package{deb("gcc-12", "12.2.0-14", "3"), deb("libc6-dev", "1:2.36-9+deb12u1", "4")},
			Headers:   []Package{deb("linux-headers-6.1.0-1-amd64", "6.1.4-1", "5")}}},
		Modules: []Module{{Name: "hello.ko", Kernel: "6.1.0-1-amd64", Arch: "x86_64", SHA1: strings.Repeat("c", 40), SHA256: hexOf("c"),
			License: "Dual BSD/GPL", SPDX: "GPL-2.0-only OR LicenseRef-BSD"}},
	}
}

// several holds modules for two kernels, one of one's own, and the source.
func several() *Artifact {
	a := single()
	a.Files[0].Name, a.Kind, a.HoldsSource, a.License = "hello-1.0.dkms.tar.xz", "dkms full", true, "MIT AND LicenseRef-own"
	a.Source = Source{SHA256: hexOf("1"), URL: "https://example.org/hello-1.0.tar.gz"}
	second := a.Cells[0]
	second.Kernel, second.Key, second.Headers, second.Custom = "6.6.0-own", hexOf("d"), nil, []string{hexOf("6")}
	second.Extra = []Package{deb("libelf-dev", "0.188-2", "7")}
	a.Cells = append(a.Cells, second)
	m := a.Modules[0]
	m.Kernel, m.SHA1, m.SHA256, m.License, m.SPDX = "6.6.0-own", strings.Repeat("e", 40), hexOf("e"), "", ""
	a.Modules = append(a.Modules, m)
	return a
}

// unbuilt holds nothing that a compiler has made.
func unbuilt() *Artifact {
	a := several()
	a.Files[0].Name, a.Kind, a.Built, a.License = "hello-meta_1.0_all.deb", "deb meta", false, ""
	return a
}

// tested is several, whose modules were booted in the first kernel.
func tested() *Artifact {
	a := several()
	a.Cells[0].Test = &Test{Verdict: "loaded", Signed: true, Kernel: []Package{deb("linux-image-6.1.0-1-amd64", "6.1.4-1", "8")}}
	return a
}

var artifacts = map[string]func() *Artifact{"single": single, "several": several, "unbuilt": unbuilt}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

// Who changes these bytes changes what others compare.
func TestGoldens(t *testing.T) {
	for name, artifact := range artifacts {
		t.Run(name, func(t *testing.T) {
			sbom := must(artifact().SBOM(builder))(t)
			golden(t, name+SBOMSuffix, sbom)
			golden(t, name+UnsignedSuffix, must(artifact().Statement(builder, File{artifact().Files[0].Name + SBOMSuffix, hexOf("f")}))(t))
		})
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// The library reads the documents back, and finds them valid and complete.
func TestSBOMIsValid(t *testing.T) {
	for name, artifact := range artifacts {
		t.Run(name, func(t *testing.T) {
			doc := must(spdxjson.Read(bytes.NewReader(must(artifact().SBOM(builder))(t))))(t)
			if err := spdxlib.ValidateDocument(doc); err != nil {
				t.Error(err)
			}
			described := must(spdxlib.GetDescribedPackageIDs(doc))(t)
			if len(described) != 1 || !strings.HasPrefix(string(described[0]), "Artifact-hello") {
				t.Errorf("it describes %v", described)
			}
			for i := range doc.Relationships { // the validator has to see what is broken
				whole := doc.Relationships[i].RefB.ElementRefID
				doc.Relationships[i].RefB.ElementRefID += "x"
				if spdxlib.ValidateDocument(doc) == nil {
					t.Errorf("the validator does not see that relationship %d is broken", i)
				}
				doc.Relationships[i].RefB.ElementRefID = whole
			}
		})
	}
}

// A test leaves the SBOM as it is, and is read back from the statement.
func TestTestResults(t *testing.T) {
	if !bytes.Equal(must(tested().SBOM(builder))(t), must(several().SBOM(builder))(t)) {
		t.Error("the SBOMs differ")
	}
	statement := must(tested().Statement(builder))(t)
	golden(t, "tested"+UnsignedSuffix, statement)
	p := must(Parse(statement))(t)
	if want := []TestResult{{hexOf("b"), "6.1.0-1-amd64", "x86_64", "loaded", true}}; !slices.Equal(p.Tests, want) {
		t.Errorf("got %+v", p.Tests)
	}
	if d := p.Of(RoleKernel); len(d) != 1 || d[0].SHA256 != hexOf("8") || !slices.Equal(d[0].Kernels, []string{"6.1.0-1-amd64"}) {
		t.Errorf("got %+v", d)
	}
	unbuilt := tested()
	unbuilt.Built = false
	if p := must(Parse(must(unbuilt.Statement(builder))(t)))(t); len(p.Tests)+len(p.Of(RoleKernel)) > 0 {
		t.Errorf("what holds no modules has %+v", p)
	}
	content := base64.StdEncoding.EncodeToString([]byte(`{"cell":"x"}`))
	broken := regexp.MustCompile(`"content":"[^"]*"`).ReplaceAll(statement, []byte(`"content":"`+content+`"`))
	if _, err := Parse(broken); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "byproducts[0]: want verdict") {
		t.Errorf("got %v", err)
	}
}

func TestStatementReadsBack(t *testing.T) {
	p := must(Parse(must(several().Statement(builder, File{"x.spdx.json", hexOf("f")}))(t)))(t)
	if p.Builder != builder || p.Parameters.Module != "hello" || len(p.Parameters.Cells) != 2 || p.LayerFormat != 2 || p.Parameters.Epoch != 1_700_000_000 {
		t.Errorf("got %+v", p)
	}
	got := map[Role]int{}
	for _, d := range p.Dependencies {
		got[d.Role]++
	}
	for role, want := range map[Role]int{RoleSource: 1, RoleRecipe: 1, RoleToolchain: 2, RoleHeaders: 2, RoleExtra: 1} {
		if got[role] != want || len(p.Of(role)) != want {
			t.Errorf("%d of role %s, want %d", got[role], role, want)
		}
	}
	tools, headers := p.Of(RoleToolchain), p.Of(RoleHeaders)
	if tools[1].URI != "pkg:deb/debian/libc6-dev@1:2.36-9%2Bdeb12u1?arch=amd64&distro=bookworm" || tools[1].Size != 1234 || tools[1].Kernels != nil {
		t.Errorf("got %+v", tools[1])
	}
	if len(headers[1].Kernels) != 1 || headers[1].Kernels[0] != "6.6.0-own" || headers[1].SHA256 != hexOf("6") {
		t.Errorf("got %+v", headers[1])
	}
	if f, err := p.Subject(hexOf("a")); err != nil || f.Name != "hello-1.0.dkms.tar.xz" {
		t.Errorf("Subject: %v, %v", f, err)
	}
	if _, err := p.Subject(hexOf("b")); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "changed") {
		t.Errorf("Subject of another file: %v", err)
	}
	if f, ok := p.SBOM(); !ok || f.SHA256 != hexOf("f") {
		t.Errorf("SBOM: %v, %v", f, ok)
	}
}

func openssl(t testing.TB, dir string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("openssl %q: %v\n%s", args, err, out)
	}
}

var kinds = map[string][]string{
	"rsa":   {"rsa:2048"},
	"p-256": {"ec", "-pkeyopt", "ec_paramgen_curve:P-256"},
	"p-384": {"ec", "-pkeyopt", "ec_paramgen_curve:P-384"},
	"p-521": {"ec", "-pkeyopt", "ec_paramgen_curve:P-521"},
}

func newKey(t testing.TB, kind string) *modsign.Key {
	t.Helper()
	dir := t.TempDir()
	openssl(t, dir, append([]string{"req", "-new", "-x509", "-nodes", "-subj", "/CN=farm", "-out", "cert.pem", "-keyout", "key.pem", "-newkey"}, kinds[kind]...)...)
	return must(modsign.Load(modsign.Source{Key: filepath.Join(dir, "key.pem"), Certificate: filepath.Join(dir, "cert.pem")}))(t)
}

func TestSignAndOpen(t *testing.T) {
	statement := must(single().Statement(builder))(t)
	for kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			key, other := newKey(t, kind), newKey(t, kind)
			line := must(Sign(t.Context(), key, statement))(t)
			if again := must(Sign(t.Context(), key, statement))(t); !bytes.Equal(line, again) {
				t.Error("the same key gives two signatures")
			}
			if bytes.Count(line, []byte("\n")) != 1 {
				t.Error("it is not one line")
			}
			got, err := Open(t.Context(), line, key.Public())
			if err != nil || !bytes.Equal(got, statement) {
				t.Errorf("got %s, %v", got, err)
			}
			if _, err := Open(t.Context(), line, other.Public()); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "is signed by the key") {
				t.Errorf("with another key: %v", err)
			}
		})
	}
}

// Whichever byte of an envelope is changed, it is refused.
func TestChangedByteIsRefused(t *testing.T) {
	key := newKey(t, "p-256")
	line := must(Sign(t.Context(), key, must(single().Statement(builder))(t)))(t)
	for i := range len(line) - 1 { // all but the line feed
		for _, flip := range []byte{1, 0x20, 0x80} {
			changed := bytes.Clone(line)
			changed[i] ^= flip
			if _, err := Open(t.Context(), changed, key.Public()); !errors.Is(err, ErrRefused) && !errors.Is(err, ErrMalformed) {
				t.Fatalf("byte %d, %q for %q: %v", i, changed[i], line[i], err)
			}
		}
	}
	for _, n := range []int{0, 1, len(line) / 2, len(line) - 2} {
		if _, err := Open(t.Context(), line[:n], key.Public()); err == nil {
			t.Errorf("the first %d bytes are accepted", n)
		}
	}
}

func TestHostileEnvelopes(t *testing.T) {
	key := newKey(t, "p-256")
	good := string(must(Sign(t.Context(), key, must(single().Statement(builder))(t)))(t))
	sig := good[strings.Index(good, `{"keyid"`):strings.LastIndex(good, "]")]
	for name, tt := range map[string]struct{ data, want string }{
		"empty":             {"", "EOF"},
		"not JSON":          {"hello", "invalid character"},
		"list":              {"[]", "cannot unmarshal"},
		"two":               {good + good, "follows"},
		"duplicate":         {`{"payload":"",` + good[1:], `"payload" is there twice`},
		"other case":        {strings.Replace(good, `"payload"`, `"Payload"`, 1), `unknown field "Payload"`},
		"both cases":        {`{"Payload":"",` + good[1:], `unknown field "Payload"`},
		"unknown":           {`{"a":1,` + good[1:], `unknown field "a"`},
		"no signature":      {strings.Replace(good, sig, "", 1), "0 signatures"},
		"17 signatures":     {strings.Replace(good, sig, sig+strings.Repeat(","+sig, 16), 1), "17 signatures"},
		"signatures' type":  {strings.Replace(good, "["+sig+"]", `"x"`, 1), "cannot unmarshal"},
		"duplicate in it":   {strings.Replace(good, `{"keyid"`, `{"sig":"","keyid"`, 1), `"sig" is there twice`},
		"other payload":     {strings.Replace(good, StatementType, "text/plain", 1), "text/plain"},
		"URL base64":        {strings.Replace(good, `"sig":"`, `"sig":"_`, 1), "signature"},
		"line in base64":    {strings.Replace(good, `"payload":"`, `"payload":"\n`, 1), "canonical"},
		"deep":              {strings.Repeat("[", 100_000), "deep"},
		"deep objects":      {strings.Repeat(`{"a":`, 100_000), "deep"},
		"big":               {strings.Repeat(" ", 64<<20), "more than"},
		"no UTF-8":          {strings.Replace(good, `"keyid":"`, "\"keyid\":\"\xff", 1), "UTF-8"},
		"another's keyid":   {strings.Replace(good, `"keyid":"`, `"keyid":"0`, 1), "is signed by the key"},
		"keyid is a number": {strings.Replace(good, sig, `{"keyid":1,"sig":""}`, 1), "cannot unmarshal"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Open(t.Context(), []byte(tt.data), key.Public())
			if err == nil || !strings.Contains(err.Error(), tt.want) || len(err.Error()) > 500 {
				t.Errorf("got %.600v, want %q", err, tt.want)
			}
		})
	}
}

func TestHostileStatements(t *testing.T) {
	good := string(must(single().Statement(builder))(t))
	replace := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("the statement has no %s", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	for name, tt := range map[string]struct{ data, want string }{
		"empty":               {"", "EOF"},
		"null":                {"null", "unexpected token"},
		"duplicate":           {`{"_type":"x",` + good[1:], "twice"},
		"duplicate deep":      {replace(`"module":"hello"`, `"module":"a","module":"b"`), "twice"},
		"deep":                {replace(`"module":"hello"`, `"module":`+strings.Repeat("[", 1000)), "deep"},
		"big":                 {replace(`"hello"`, `"`+strings.Repeat("h", 33<<20)+`"`), "more than"},
		"other type":          {replace("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"), "Statement/v0.1"},
		"no type":             {replace("https://in-toto.io/Statement/v1", "x"), "wrong statement type"},
		"other predicate":     {replace("https://slsa.dev/provenance/v1", "https://slsa.dev/provenance/v0.2"), "provenance/v0.2"},
		"other build type":    {replace("BUILDTYPE.md#v1", "BUILDTYPE.md#v9"), "buildType"},
		"no subject":          {replace(`"subject":[{`, `"subject":[],"x":[{`), "at least one subject"},
		"short digest":        {replace(hexOf("a"), "aa"), "incorrect length"},
		"upper-case digest":   {replace(hexOf("a"), hexOf("A")), "sha256"},
		"only md5":            {replace(`"sha256":"`+hexOf("a"), `"md5":"`+strings.Repeat("a", 32)), "sha256"},
		"subject's type":      {replace(`"name":"hello-1.0-kernel`, `"name":1,"x":"`), "invalid value"},
		"predicate's type":    {replace(`"predicate":{`, `"predicate":[],"y":{`), "unexpected token ["},
		"no builder":          {replace(`"id":"https://example.org/farm"`, `"id":""`), "builder"},
		"module is a number":  {replace(`"module":"hello"`, `"module":1`), "externalParameters"},
		"no cells":            {replace(`"cells":[{`, `"cells":[],"z":[{`), "cells are needed"},
		"a cell without key":  {replace(`"key":"`+hexOf("b"), `"key":"`), "key"},
		"layers' type":        {replace(`"layerFormat":2`, `"layerFormat":"x"`), "internalParameters"},
		"a dependency's sum":  {replace(`"sha256":"`+hexOf("3"), `"sha512":"`+strings.Repeat("3", 128)), "resolvedDependencies[2]"},
		"a dependency's role": {replace(`"role":"toolchain"`, `"role":[]`), "resolvedDependencies[2]"},
		"a size of 0.5":       {replace(`"size":1234`, `"size":0.5`), "resolvedDependencies[0]"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(tt.data))
			if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), tt.want) || len(err.Error()) > 500 {
				t.Errorf("got %.600v, want %q", err, tt.want)
			}
		})
	}
	if _, err := Parse([]byte(`{"new":{"a":[1]},` + good[1:])); err != nil {
		t.Errorf("in-toto wants unknown fields ignored: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, artifact := range artifacts {
		f.Add(must(artifact().Statement(builder))(f))
	}
	f.Add([]byte(`{"_type":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse(data)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("error %v", err)
			}
			return
		}
		if len(p.Subjects) == 0 || len(p.Parameters.Cells) == 0 || p.Builder.ID == "" {
			t.Errorf("incomplete: %+v", p)
		}
		if _, err := json.Marshal(p); err != nil {
			t.Error(err)
		}
	})
}

func FuzzOpen(f *testing.F) {
	key := newKey(f, "p-256")
	statement := must(single().Statement(builder))(f)
	f.Add(must(Sign(f.Context(), key, statement))(f))
	f.Add([]byte(`{"payload":"","payloadType":"application/vnd.in-toto+json","signatures":[{"keyid":"","sig":""}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := Open(t.Context(), data, key.Public())
		if err == nil && !bytes.Equal(got, statement) {
			t.Errorf("accepted %q", data)
		}
	})
}
