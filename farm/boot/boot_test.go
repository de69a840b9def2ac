package boot

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kofarm/kofarm/farm/kmod"
	"github.com/kofarm/kofarm/images/store"
)

// TestCPIO has busybox unpack what is written.
func TestCPIO(t *testing.T) {
	var b bytes.Buffer
	c := newCPIO(&b)
	c.dir("dev")
	c.file("a/b/c", 0o755, []byte("content"))
	c.file("a/empty", 0o644, nil)
	c.link("a/link", "b/c")
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command("busybox", "cpio", "-i", "-d")
	cmd.Dir, cmd.Stdin = dir, &b
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s (ci/setup test installs busybox)", err, out)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "a/link")); err != nil || string(got) != "content" {
		t.Errorf("a/link: %q, %v", got, err)
	}
	for name, want := range map[string]os.FileMode{"dev": os.ModeDir | 0o755, "a/b/c": 0o755, "a/empty": 0o644} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Mode() != want {
			t.Errorf("%s: %v, %v, want %v", name, fi.Mode(), err, want)
		}
	}
}

// lz4Frame is `printf 'abcabcabcabcabcabc…' | lz4 -l` made by hand: a literal
// run, a match that overlaps itself, and a literal end.
func lz4Frame(block []byte) []byte {
	f := append([]byte(lz4Magic), binary.LittleEndian.AppendUint32(nil, uint32(len(block)))...)
	return append(f, block...)
}

func TestLZ4(t *testing.T) {
	long := append([]byte{0x1f, 'x', 1, 0, 255, 10}, 0x20, 'y', 'z')
	tests := []struct {
		name  string
		block []byte
		want  string
		ok    bool
	}{
		{"literals", []byte{0x30, 'a', 'b', 'c'}, "abc", true},
		{"a match that overlaps itself", []byte{0x35, 'a', 'b', 'c', 3, 0, 0x10, '!'}, "abc" + "abcabcabc" + "!", true},
		{"a long match", long, "x" + strings.Repeat("x", 15+255+10+4) + "yz", true},
		{"an offset before the beginning", []byte{0x10, 'a', 2, 0, 0}, "", false},
		{"an offset of nothing", []byte{0x10, 'a', 0, 0, 0}, "", false},
		{"cut off in literals", []byte{0x30, 'a'}, "", false},
		{"cut off in a length", []byte{0xf0, 255, 255}, "", false},
		{"too much", []byte{0x1f, 'x', 1, 0, 255, 255, 255, 255, 255, 0, 0x10, 'y'}, "", false},
	}
	for _, tt := range tests {
		got, err := lz4Legacy(lz4Frame(tt.block), 1000)
		if (err == nil) != tt.ok || tt.ok && string(got) != tt.want {
			t.Errorf("%s: %q, %v", tt.name, got, err)
		}
	}
}

func TestVMLinux(t *testing.T) {
	image := make([]byte, 0x400)
	for name, change := range map[string]func([]byte){
		"no header":       func([]byte) {},
		"payload outside": func(b []byte) { copy(b[headerMagic:], "HdrS\x0f\x02"); b[payloadLength+2] = 1 },
		"unknown compression": func(b []byte) {
			copy(b[headerMagic:], "HdrS\x0f\x02")
			b[setupSectors] = 1
			b[payloadLength] = 0
			copy(b[payloadLength-4:], "\x00\x00\x00\x00")
		},
		"nothing but its magic": func(b []byte) { copy(b[headerMagic:], "HdrS") },
	} {
		b := slices.Clone(image)
		change(b)
		if _, err := vmlinux(b); err == nil || !strings.Contains(err.Error(), errNoPayload.Error()) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSoftdep(t *testing.T) {
	for s, want := range map[string][]string{
		"pre: crc32c":                   {"crc32c"},
		"pre: a-b c post: d":            {"a_b", "c"},
		"post: d":                       nil,
		"post: a pre: b pre: c":         {"b", "c"},
		"pre:":                          nil,
		"d":                             nil,
		"pre: sha256 platform:\t post:": {"sha256", "platform:"},
	} {
		if got := softdepPre(s); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}

// TestClosure has an index of a few modules.
func TestClosure(t *testing.T) {
	ix := newIndex()
	for name, info := range map[string][]kmod.KV{
		"libcrc32c":      {{Key: "softdep", Value: "pre: crc32c"}},
		"crc32c-generic": {{Key: "alias", Value: "crc32c"}, {Key: "alias", Value: "crypto-crc32c"}},
		"crc32c-intel":   {{Key: "alias", Value: "crc32c"}, {Key: "alias", Value: "cpu:type:x86"}},
		"dm-mod":         {},
		"dm-bufio":       {{Key: "depends", Value: "dm-mod"}},
		"loop-a":         {{Key: "depends", Value: "loop-b"}},
		"loop-b":         {{Key: "depends", Value: "loop-a"}},
	} {
		ix.add(moduleName(name+".ko.xz"), &kmod.Module{Info: info})
	}
	ix.builtin([]byte("kernel/fs/ext4/ext4.ko\nkernel/lib/crc-t10dif.ko\n"))
	ix.builtinInfo([]byte("ext4.alias=fs-ext4\x00ext4.license=GPL\x00"))
	ix.finish()
	ix.Modules["usbnet"], ix.Modules["mii"] = ownModule{Depends: []string{"mii"}}, ownModule{}
	none := map[string]ownModule{}
	tests := []struct {
		names         []string
		instead       map[string]ownModule
		want, unknown []string
	}{
		{[]string{"libcrc32c", "dm_bufio"}, none, []string{"crc32c_generic", "crc32c_intel", "libcrc32c", "dm_mod", "dm_bufio"}, nil},
		{[]string{"loop-a"}, none, []string{"loop_b", "loop_a"}, nil},
		{[]string{"ext4", "fs-ext4", "crc_t10dif"}, none, nil, nil},
		{[]string{"nosuch", "cpu:type:x86"}, none, nil, []string{"nosuch", "cpu:type:x86"}},
		{[]string{"mine"}, map[string]ownModule{"mine": {}}, []string{"mine"}, nil},
		{[]string{"ext4"}, map[string]ownModule{"ext4": {}}, []string{"ext4"}, nil},
		{[]string{"crc32c"}, map[string]ownModule{"crc32c_intel": {Depends: []string{"mii"}}}, []string{"crc32c_generic", "mii", "crc32c_intel"}, nil},
		{[]string{"usbuser", "mii"}, map[string]ownModule{"mii": {Depends: []string{"dm-mod"}}, "usbuser": {Depends: []string{"usbnet"}}},
			[]string{"dm_mod", "mii", "usbnet", "usbuser"}, nil},
		{[]string{"a", "b", "c", "x", "y"}, map[string]ownModule{"a": {Depends: []string{"c", "ext4"}}, "b": {Before: []string{"a"}}, "c": {},
			"x": {Depends: []string{"y"}}, "y": {Depends: []string{"x"}}}, []string{"c", "a", "b", "y", "x"}, nil},
	}
	for _, tt := range tests {
		got, unknown := ix.closure(tt.names, tt.instead)
		if !slices.Equal(got, tt.want) || !slices.Equal(unknown, tt.unknown) {
			t.Errorf("%q: %q, unknown %q; want %q, %q", tt.names, got, unknown, tt.want, tt.unknown)
		}
	}
}

// TestPlan has a shell carry out a plan whose functions print their arguments.
func TestPlan(t *testing.T) {
	u := &loading{Unit: &Unit{Script: []byte("x")}, names: []string{"a", "b"}, order: []string{"own", "a", "other", "b"},
		files: map[string]Module{"a": {Parameters: []string{"x=it's $HOME", "y=`id`; *"}}, "b": {}}}
	program := `for f in hello unit need load script unload bye; do eval "$f() { printf '%s' $f; printf ' <%s>' \"\$@\"; echo; }"; done` + "\n"
	p := planOf([]*loading{u}, DefaultTimeout)
	out, err := exec.Command("busybox", "sh", "-c", program+string(p.text("ttyS1", "0123"))+"echo $port $tag").Output()
	if err != nil {
		t.Fatal(err)
	}
	want := `hello <>
unit <0>
need <own> </own/own.ko>
load <a> </unit/0/a.ko> <x=it's $HOME> <y=` + "`id`; *" + `>
need <other> </own/other.ko>
load <b> </unit/0/b.ko>
script </unit/0/script> <54> <a> <b>
unload <b>
unload <a>
bye <>
/dev/ttyS1 0123
`
	if string(out) != want {
		t.Errorf("got:\n%s\nwant:\n%s", out, want)
	}
}

func TestMessage(t *testing.T) {
	for line, want := range map[string]string{
		"[    7.884536] crc8: x":       "crc8: x",
		"<4>[   12.000001] a":          "a",
		"[drm] not a time":             "[drm] not a time",
		"<Oops> no level":              "<Oops> no level",
		"\x1b[31mred\x07 \xff":         "[31mred \uFFFD",
		"":                             "",
		"[ 1.5]   an indented line \t": "  an indented line \t",
	} {
		if got := message(line); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

func TestErrnoOf(t *testing.T) {
	for text, want := range map[string]string{
		"insmod: can't insert '/unit/0/a.ko': No such device":                         "no such device",
		"insmod: can't insert 'x.ko': invalid module format":                          "exec format error",
		"insmod: can't insert 'x.ko': unknown symbol in module, or unknown parameter": "no such file or directory",
		"insmod: can't insert 'x.ko': Key was rejected by service":                    "key was rejected by service",
		"rmmod: can't unload module 'kf_noexit': Device or resource busy":             "device or resource busy",
		"insmod: can't insert 'a: b.ko': Unknown error 524":                           "operation not supported",
		"what else": "errno 0",
	} {
		if got := errnoOf(errorText([]string{text})).Error(); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

// twoUnits are two units: one with all that a unit can have, and a plain one.
func twoUnits() []*loading {
	return []*loading{
		{Unit: &Unit{Version: "one/1", Script: []byte("x")}, names: []string{"a"}, files: map[string]Module{"a": {File: "a.ko"}},
			order: []string{"crc32c_intel", "snd", "there", "a"}, unknown: []string{"soundcore"}},
		{Unit: &Unit{Version: "two/2"}, names: []string{"b"}, order: []string{"b"}, files: map[string]Module{"b": {File: "b.ko"}}},
	}
}

// reported is how init.sh reports a boot of twoUnits. The first stays.
const reported = `firmware uses the port
begin load x

# hello 6.1.0-50-amd64 512
# unit 0
# need crc32c_intel 1 insmod: can't insert '/own/crc32c_intel.ko': No such device
# need snd 1 insmod: can't insert '/own/snd.ko': Invalid argument
# need there 0 
# begin load a
request crypto-ecb
kernel [    1.000000] a: loading out-of-tree module taints kernel.
kernel end 0 Live 0 0 -

# end 0 Live 0 12288 OE
# begin script a
text fine
text bye

# end 3 Live 12288 12288 OE
# begin unload a
text rmmod: can't unload module 'a': Device or resource busy

# end 1 Live 12288 12288 OE
# stuck a
# unit 1
`

// readReport reads a report whose tag is "#", until a line ends it.
func readReport(units []*loading, text string) (*bootRun, reply) {
	b := newRun(planOf(units, DefaultTimeout), "#")
	r := noted
	for line := range strings.Lines(text) {
		if r = b.line(strings.TrimSuffix(line, "\n"), 0); r == last || r == astray {
			break
		}
	}
	return b, r
}

func TestReport(t *testing.T) {
	units := twoUnits()
	b, reply := readReport(units, reported)
	if reply != last || b.release != "6.1.0-50-amd64" || !b.stuck || b.bye || len(b.units) != 1 {
		t.Fatalf("%+v", b)
	}
	r := judge(units[0], &b.units[0], nil)
	if r.Verdict != Failed || r.Script == nil || r.Script.Status != 3 || !slices.Equal(r.Script.Output, []string{"fine", "bye"}) {
		t.Errorf("%+v %+v", r, r.Script)
	}
	if want := []string{"snd: Invalid argument", "the kernel has no module soundcore"}; !slices.Equal(r.Notes, want) {
		t.Errorf("notes %q, want %q", r.Notes, want)
	}
	if got := b.units[0].steps[0].requests; !slices.Equal(got, []string{"crypto-ecb"}) {
		t.Errorf("requests %q", got)
	}
	m := r.Modules[0]
	if m.Verdict != Loaded || m.Taint != "OE" || m.Kept != "Device or resource busy" || len(m.Messages) != 2 || m.Messages[1] != "end 0 Live 0 0 -" {
		t.Errorf("%+v", m)
	}
}

// TestJudgeScript has scripts that end badly: what counts is the end of what they
// print, and what the kernel says.
func TestJudgeScript(t *testing.T) {
	var output []string
	for i := range maxMessages + 5 {
		output = append(output, fmt.Sprint(i))
	}
	warning := []string{"a: hello", "WARNING: CPU: 0 PID: 71 at /build/a.c:3"}
	for _, tt := range []struct {
		name    string
		step    step
		verdict Verdict
		reason  string
	}{
		{"good", step{kernel: []string{"a: hello"}}, Loaded, ""},
		{"a status", step{status: 3, kernel: []string{"a: hello"}}, Failed, ""},
		{"a warning", step{kernel: warning}, Crashed, "warning"},
		{"taint", step{status: 3, after: taintWarn}, Crashed, "warning"},
	} {
		tt.step.text = output
		r, verdict := judgeScript(&tt.step)
		if verdict != tt.verdict || r.Reason != tt.reason || r.Status != tt.step.status || (tt.reason == "") != (r.Messages == nil) && tt.step.kernel != nil {
			t.Errorf("%s: %s, %+v", tt.name, verdict, r)
		}
		if len(r.Output) != maxMessages+1 || r.Output[0] != "… 5 lines before" || r.Output[maxMessages] != fmt.Sprint(maxMessages+4) {
			t.Errorf("%s: %q", tt.name, r.Output)
		}
	}
}

// TestStray has lines that somebody else writes among those of init.sh.
func TestStray(t *testing.T) {
	begun, _, _ := strings.Cut(reported, "kernel end 0")
	before, during, _ := strings.Cut(begun, "# unit 0\n")
	during = "# unit 0\n" + during
	tests := []struct{ name, text, stray string }{
		{"units that there are not", before + "unit 0\nunit 1\n", "unit 0"},
		{"another unit", before + "# unit 1\n", "# unit 1"},
		{"a unit in the middle of a step", before + during + "# unit 1\n", "# unit 1"},
		{"the end", before + during + "# bye\n", "# bye"},
		{"another module", before + "# unit 0\n# need snd 0 \n", "# need snd 0 "},
		{"a step that is not begun", before + "# unit 0\n# end 0 Live 0 0 -\n", "# end 0 Live 0 0 -"},
		{"a step of a module that comes later", before + strings.Replace(during, "begin load a", "begin unload a", 1), "# begin unload a"},
		{"a step that has to be there", before + strings.Replace(during, "begin load a", "skip load", 1), "# skip load"},
		{"an end without the tag", before + during + "end 0 Live 0 0 OE\n", "end 0 Live 0 0 OE"},
		{"an end that says too little", before + during + "# end 0 Live 0 0\n", "# end 0 Live 0 0"},
		{"an end with something else than numbers", before + during + "# end 0 Live 0 x OE\n", "# end 0 Live 0 x OE"},
		{"a line between steps", before + "\n", ""},
		{"lines without an end", before + during + strings.Repeat("text\n", maxStepLines), "text"},
		{"bytes without an end", before + during + strings.Repeat("text "+strings.Repeat("x", 1<<16)+"\n", 8), "text " + strings.Repeat("x", 1<<16)},
	}
	for _, tt := range tests {
		units := twoUnits()
		if b, r := readReport(units, tt.text); r != astray || b.stray != tt.stray || len(b.units) > len(units) {
			t.Errorf("%s: %v, %.99q of %d units", tt.name, r, b.stray, len(b.units))
		}
	}
	for _, text := range []string{"hello 6.1\nunit 0\nbye\n", "begin\nend\n", strings.Repeat("\n", 2*maxStepLines)} {
		if b, r := readReport(twoUnits(), text); r != noted || len(b.units) > 0 {
			t.Errorf("%.30q before the first line: %v", text, r)
		}
	}
}

// TestShared has boots of two units, as they were reported: which of the units is
// to be booted alone?
func TestShared(t *testing.T) {
	const (
		hello   = "# hello 6.1 512\n"
		one     = "# unit 0\n# need crc32c_intel 0 \n# need snd 0 \n# need there 0 \n# begin load a\n%# end 0 Live 512 %a OE\n# begin script a\n# end %s Live 512 %a OE\n# begin unload a\n# end 0 - %a %a -\n"
		two     = "# unit 1\n# begin load b\n%b# end %s %a %a OE\n"
		unload  = "# begin unload b\n# end 0 - %a %a -\n# bye\n"
		skip    = "# skip unload\n# bye\n"
		fine    = "0 Live"
		request = "request x\n"
		nodev   = "text insmod: can't insert 'b.ko': No such device\n"
		inval   = "text insmod: can't insert 'b.ko': Invalid argument\n"
	)
	report := func(before, script, taint, during, status, after string) string {
		first := strings.NewReplacer("%#", before+"#", "%s", script, "%a", taint)
		second := strings.NewReplacer("%b", during, "%s", status, "%a", taint)
		return hello + first.Replace(one) + second.Replace(two+after)
	}
	tests := []struct {
		name, text string
		crash      *crash
		faulty     bool
		units      int
		alone      []int
	}{
		{"both load", report("", "0", "12800", "", fine, unload), nil, false, 2, nil},
		{"one refuses itself", report("", "0", "12800", nodev, "1 -", skip), nil, false, 2, nil},
		{"one refuses itself and has asked for modules", report("", "0", "12800", nodev+request, "1 -", skip), nil, false, 2, []int{1}},
		{"one has asked for modules", report(request, "0", "12800", "", fine, unload), nil, false, 2, nil},
		{"one fails", report("", "0", "12800", inval, "1 -", skip), nil, false, 2, []int{1}},
		{"a script fails", report("", "1", "12800", "", fine, unload), nil, false, 2, []int{0}},
		{"one warns, though the kernel has before", report("kernel WARNING: CPU: 0 PID: 1 at x.c:1\n", "0", "12800", "", fine, unload), nil, false, 2, []int{0}},
		{"one leaves the kernel with a fault", report("", "0", "12928", "", fine, unload), nil, true, 1, []int{0}},
		{"one ends the kernel", report("", "0", "12800", "", fine, ""), crashOf(ended, ""), false, 2, []int{1}},
	}
	for _, tt := range tests {
		units := twoUnits()
		run, r := readReport(units, tt.text)
		if r == astray || len(run.units) != tt.units || run.faulty != tt.faulty {
			t.Errorf("%s: %d units, faulty %v, %q", tt.name, len(run.units), run.faulty, run.stray)
			continue
		}
		var alone []int
		for i, r := range judgeShared(units[:len(run.units)], run, tt.crash) {
			if r.Report != nil && !slices.Equal(r.Report.Beside, []string{units[1-i].Version}) {
				t.Errorf("%s: beside %q", tt.name, r.Report.Beside)
			}
			if r.Report == nil {
				alone = append(alone, i)
			}
		}
		if !slices.Equal(alone, tt.alone) {
			t.Errorf("%s: alone are %v, want %v", tt.name, alone, tt.alone)
		}
	}
	if run, r := readReport(twoUnits()[1:], hello+"# unit 0\n# begin load b\n# end 0 Live 512 12928 OE\n"); run.faulty || r != onward {
		t.Error("a unit that is alone is not carried on after a fault")
	}
}

func TestBatches(t *testing.T) {
	unit := func(names, own string) *loading {
		return &loading{Unit: &Unit{}, names: strings.Fields(names), own: strings.Fields(own)}
	}
	tests := []struct {
		name  string
		units []*loading
		want  [][]int
	}{
		{"different modules", []*loading{unit("a", "crc32c"), unit("b", "crc32c"), unit("c d", "")}, [][]int{{0, 1, 2}}},
		{"versions", []*loading{unit("a", ""), unit("a", ""), unit("b", ""), unit("a b", ""), unit("c", "")}, [][]int{{0, 2, 4}, {1}, {3}}},
		{"the kernel's own instead of another's", []*loading{unit("mii", ""), unit("a", "mii usbnet"), unit("b", "")}, [][]int{{0, 2}, {1}}},
		{"another's instead of the kernel's own", []*loading{unit("a", "mii usbnet"), unit("mii", "")}, [][]int{{0}, {1}}},
		{"large ones", []*loading{{Unit: &Unit{}, size: maxModules / 2}, {Unit: &Unit{}, size: 2 * maxModules}, {Unit: &Unit{}, size: maxModules / 2}, unit("a", ""), {Unit: &Unit{}, size: 1}},
			[][]int{{0, 2, 3}, {1}, {4}}},
		{"many", []*loading{unit("a", ""), unit("b", ""), unit("c", ""), unit("d", ""), unit("e", "")}, [][]int{{0, 1, 2, 3}, {4}}},
	}
	for _, tt := range tests {
		if got := batches(tt.units, 4); !slices.EqualFunc(got, tt.want, slices.Equal) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestPortions has things of which one is too much for more than itself.
func TestPortions(t *testing.T) {
	for _, bad := range []int{-1, 0, 7, 19} {
		var calls, done []int
		err := portions(20, func(from, to int) (int, error) {
			calls = append(calls, to-from)
			if from <= bad && bad < to && to-from > 1 {
				return 0, nil
			}
			n := min(to-from, 5) // no more at a time
			for i := range n {
				done = append(done, from+i)
			}
			return n, nil
		})
		if err != nil || len(done) != 20 || !slices.IsSorted(done) || slices.Compact(slices.Clone(done))[19] != 19 {
			t.Errorf("bad %d: %v, done %v", bad, err, done)
		}
		if len(calls) > 16 {
			t.Errorf("bad %d: %v", bad, calls)
		}
	}
	err := portions(maxUnits, func(from, to int) (int, error) {
		if to != maxUnits {
			t.Errorf("%d to %d, where one at a time gets done", from, to)
		}
		return 1, nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := portions(2, func(int, int) (int, error) { return 0, io.EOF }); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

// TestWhere has boots that end at some line: in which step?
func TestWhere(t *testing.T) {
	u := &loading{Unit: &Unit{}, names: []string{"mii", "user"}, order: []string{"first", "mii", "usbnet", "user"},
		files: map[string]Module{"mii": {File: "mii.ko"}, "user": {File: "user.ko"}}}
	lines := []struct{ line, kind, module string }{
		{"hello 6.1 0", "", ""},
		{"unit 0", "load", "mii"},
		{"need first 0 ", "load", "mii"},
		{"begin load mii", "load", "mii"},
		{"end 0 Live 0 0 OE", "load", "user"}, // usbnet comes next, which user needs
		{"need usbnet 0 ", "load", "mii"},     // what mii has left behind, or else user is next to begin
		{"begin load user", "load", "user"},
		{"end 0 Live 0 0 OE", "load", "user"},
		{"begin unload user", "unload", "user"},
		{"end 0 - 0 0 -", "unload", "user"},
		{"begin unload mii", "unload", "mii"},
		{"end 0 - 0 0 -", "unload", "mii"},
	}
	var text strings.Builder
	for _, l := range lines {
		text.WriteString("# " + l.line + "\n")
		run, r := readReport([]*loading{u}, text.String())
		if s := run.where(); r != onward || s.kind != l.kind || s.module != l.module {
			t.Errorf("after %q: %s %s, want %s %s", l.line, s.kind, s.module, l.kind, l.module)
		}
	}
	run, _ := readReport([]*loading{u}, "# hello 6.1 0\n# unit 0\n# need first 0 \n# begin load mii\n# end 0 Live 0 0 OE\n")
	run.units[0].steps[0].console = 30 // the report was read later than the console
	oops := outcome{ending: ended, console: "BUG: kernel NULL pointer dereference\nKernel panic\n", total: 50}
	if c := run.crash(oops); c.reason != "oops" || len(c.messages) != 2 {
		t.Errorf("%+v", c)
	}
	r := judge(u, &run.units[0], &crash{at: run.where(), verdict: Hung, reason: "timeout"})
	if r.Verdict != Hung || r.Modules[0].Verdict != Loaded || r.Modules[1].Verdict != Hung || r.Modules[1].Reason != "timeout" {
		t.Errorf("%+v", r)
	}
}

// TestTag has boots that differ: no module may know the tag of another's.
func TestTag(t *testing.T) {
	boot := func(m Module, script string) string {
		units := []*loading{{Unit: &Unit{Modules: []Module{m}, Script: []byte(script)}, names: []string{"a"}, order: []string{"a"}, files: map[string]Module{"a": m}}}
		return tagOf(planOf(units, DefaultTimeout), units)
	}
	tags := map[string]bool{
		boot(Module{File: "a.ko", SHA256: "1"}, ""):                              true,
		boot(Module{File: "a.ko", SHA256: "2"}, ""):                              true,
		boot(Module{File: "a.ko", SHA256: "1", Parameters: []string{"x=1"}}, ""): true,
		boot(Module{File: "a.ko", SHA256: "1"}, "x"):                             true,
	}
	if len(tags) != 4 || tags[""] || !tags[boot(Module{File: "a.ko", SHA256: "1"}, "")] {
		t.Errorf("%v", tags)
	}
}

// TestSilence has a guest that reports all the time: that gives it time for a
// step, but none for the whole.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSilence(0, 10*time.Second, time.Minute) // process 0 waits for nothing
		for _, want := range []struct {
			after time.Duration
			err   error
		}{
			{9 * time.Second, nil}, {4 * time.Second, nil}, {2 * time.Second, errSilent}, {time.Second, errSilent},
		} {
			if time.Sleep(want.after); want.after == 4*time.Second {
				s.heard(5 * time.Second)
				time.Sleep(want.after)
			}
			if err := s.over(); !errors.Is(err, want.err) {
				t.Errorf("after %s: %v, want %v", want.after, err, want.err)
			}
		}
		for range 11 {
			s.heard(5 * time.Second)
			time.Sleep(4 * time.Second)
		}
		if err := s.over(); !errors.Is(err, errLate) {
			t.Errorf("after all: %v", err)
		}
		if l := (limit{most: time.Second, begun: time.Now()}); l.over(time.Hour) {
			t.Error("over at once")
		} else if time.Sleep(9 * time.Second); l.over(time.Hour) {
			t.Error("over, though the machine is busy")
		} else if time.Sleep(2 * time.Second); !l.over(time.Hour) {
			t.Error("a machine that is busy for ever gives time for ever")
		}
	})
}

// TestRefusal has what kernels say, as loading modules has shown it.
func TestRefusal(t *testing.T) {
	tests := []struct {
		text, kernel string
		verdict      Verdict
		reason       string
	}{
		{"invalid module format", "x: disagrees about version of symbol module_layout", Rejected, "crc"},
		{"invalid module format", "x: version magic '6.1.0 SMP ' should be '6.1.1 SMP '", Rejected, "vermagic"},
		{"Invalid argument", "x: disagrees about version of symbol _printk", Rejected, "crc"},
		{"unknown symbol in module, or unknown parameter", "x: Unknown symbol kf_base_answer (err -2)", Rejected, "symbol"},
		{"Invalid argument", "x: `abc' invalid for parameter `number'", Rejected, "parameter"},
		{"Key was rejected by service", "Loading of unsigned module is rejected", Rejected, "signature"},
		{"invalid module format", "", Rejected, "format"},
		{"invalid module format", "Invalid ELF header magic: != \x7fELF", Rejected, "format"},
		{"No such device", "x: no hardware; relocation of nothing", Refused, "ENODEV"},
		{"Operation not supported", "", Refused, "EOPNOTSUPP"},
		{"Invalid argument", "x: I do not like it", Failed, "EINVAL"},
		{"Cannot allocate memory", "", Failed, "ENOMEM"},
	}
	for _, tt := range tests {
		s := &step{kind: "load", module: "x", done: true, status: 1, state: "-", text: []string{"insmod: can't insert '/unit/0/x.ko': " + tt.text}}
		if tt.kernel != "" {
			s.kernel = []string{tt.kernel}
		}
		m := judgeModule("x.ko", s, nil, nil)
		if m.Verdict != tt.verdict || m.Reason != tt.reason {
			t.Errorf("%s, %q: %s (%s), want %s (%s)", tt.text, tt.kernel, m.Verdict, m.Reason, tt.verdict, tt.reason)
		}
	}
}

// TestIgnoredParameter has a module that loads without a parameter of the farm file's.
func TestIgnoredParameter(t *testing.T) {
	for kernel, want := range map[string]Verdict{"x: unknown parameter 'anwser' ignored": Rejected, "x: parameters are fine": Loaded} {
		s := &step{kind: "load", module: "x", done: true, state: "Live", kernel: []string{kernel}}
		if m := judgeModule("x.ko", s, nil, nil); m.Verdict != want || (m.Reason == "parameter") != (want == Rejected) {
			t.Errorf("%s: %+v", kernel, m)
		}
	}
}

func TestWarned(t *testing.T) {
	for _, tt := range []struct {
		step step
		want bool
	}{
		{step{before: 0, after: 12288}, false},
		{step{before: 12288, after: 12800}, true},
		{step{before: 12800, after: 12800}, false},
		{step{before: 12800, after: 12800, kernel: []string{"WARNING: CPU: 0 PID: 70 at /x.c:30 f+0x1/0x2 [x]"}}, true},
		{step{before: 12800, after: 12800, kernel: []string{"WARNING: /x.c:30 at f+0x1/0x2 [x], CPU#0: insmod/70"}}, true},
		{step{before: 12800, after: 12800, kernel: []string{"WARNING: this module is old"}}, false},
	} {
		if got := tt.step.warned(); got != tt.want {
			t.Errorf("%+v: %v", tt.step, got)
		}
	}
}

func TestCrashOf(t *testing.T) {
	for _, tt := range []struct {
		end             ending
		console         string
		verdict         Verdict
		reason, message string
	}{
		{ended, "[    1.0] x: hello\r\n[    1.1] BUG: kernel NULL pointer dereference, address: 0\r\n[    1.2] Oops: 0002 [#1] SMP\r\n[    1.3] Kernel panic - not syncing: Fatal exception\r\n",
			Crashed, "oops", "BUG: kernel NULL pointer dereference, address: 0"},
		{ended, "[    9.0] watchdog: BUG: soft lockup - CPU#0 stuck for 9s! [insmod:70]\n[   9.1] Kernel panic - not syncing: softlockup: hung tasks\n", Crashed, "lockup",
			"watchdog: BUG: soft lockup - CPU#0 stuck for 9s! [insmod:70]"},
		{ended, "Kernel panic - not syncing: out of memory\n", Crashed, "panic", "Kernel panic - not syncing: out of memory"},
		{ended, "", Crashed, "reset", ""},
		{silent, "x: waiting\n", Hung, "timeout", "x: waiting"},
	} {
		c := crashOf(tt.end, tt.console)
		if c.verdict != tt.verdict || c.reason != tt.reason || tt.message != "" && (len(c.messages) == 0 || c.messages[0] != tt.message) {
			t.Errorf("%q: %+v", tt.console, c)
		}
	}
}

func TestLineReader(t *testing.T) {
	long := strings.Repeat("x", 3*maxLine)
	l := lineReader{r: strings.NewReader("a\r\n\n" + long + "\nlast\nno end")}
	for _, want := range []string{"a", "", long[:maxLine], "last"} {
		if got, ok := l.next(); !ok || got != want {
			t.Fatalf("got %.20q (%d bytes), want %.20q (%d)", got, len(got), want, len(want))
		}
	}
	if got, ok := l.next(); ok {
		t.Errorf("%q without an end", got)
	}
}

// FuzzReport reads reports of hostile guests, which know the tag: they may not
// make it fail, or take more memory than lines that the plan expects.
func FuzzReport(f *testing.F) {
	f.Add(reported)
	f.Add("# hello 6.1 0\n# unit 0\n# need crc32c_intel 0 \n# need snd 0 \n# need there 0 \n# begin load a\n# end 0 Live 0 0 OE\n" +
		"# skip script\n# skip unload\n# unit 1\n# begin load b\n# end 99999999999999999999 a b c d\n")
	f.Fuzz(func(t *testing.T, text string) {
		units := twoUnits()
		run, _ := readReport(units, text)
		if len(run.units) > len(units) {
			t.Fatalf("%d units", len(run.units))
		}
		for _, c := range []*crash{nil, crashOf(ended, text)} {
			if c != nil {
				c.at = run.where()
			}
			if n := len(run.units); n > 0 && len(judgeShared(units[:n], run, c)) != n {
				t.Fatal("a unit without a result")
			}
		}
		for i := range run.units {
			if n := len(run.units[i].steps); n > 3 {
				t.Fatalf("%d steps", n)
			}
			for _, c := range []*crash{nil, crashOf(ended, text), crashOf(strayed, text)} {
				r := judge(units[i], &run.units[i], c)
				if len(r.Modules) != 1 || !slices.Contains(Verdicts(), r.Verdict) {
					t.Fatalf("%+v", r)
				}
			}
		}
	})
}

func FuzzLZ4(f *testing.F) {
	f.Add([]byte{0x35, 'a', 'b', 'c', 3, 0, 0x10, '!'})
	f.Fuzz(func(t *testing.T, block []byte) {
		if out, err := lz4Legacy(lz4Frame(block), 1<<16); err == nil && len(out) > 1<<16 {
			t.Fatal(len(out))
		}
	})
}

// TestStored has verdicts that are not on what is asked for, in a store or a
// registry that others write to.
func TestStored(t *testing.T) {
	s, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	tester := &Tester{Store: s}
	k := Kernel{Release: "6.1.0-1-amd64", Arch: "x86_64"}
	unit := func(sha string) *Unit { return &Unit{Modules: []Module{{File: "a.ko", SHA256: sha}}} }
	good := &Report{Verdict: Loaded, Modules: []ModuleReport{{Module: "a.ko", Verdict: Loaded}}}
	if err := tester.save(t.Context(), k, unit("1"), good); err != nil {
		t.Fatal(err)
	}
	if r := tester.Stored(k, unit("1")); r == nil || r.Verdict != Loaded {
		t.Errorf("%+v", r)
	}
	for name, other := range map[string]*Tester{"other options": {Store: s, Options: "x"}, "a certificate": {Store: s, Trust: []byte("x")},
		"other memory": {Store: s, Memory: DefaultMemory / 2}} {
		if r := other.Stored(k, unit("1")); r != nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
	d, err := s.Ref(VerdictRef, tester.key(k, unit("1")))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetRef(VerdictRef, tester.key(k, unit("2")), d); err != nil {
		t.Fatal(err)
	}
	if r := tester.Stored(k, unit("2")); r != nil {
		t.Errorf("another module's: %+v", r)
	}
	for name, bad := range map[string]*Report{"a verdict that there is not": {Verdict: "fine", Modules: good.Modules}, "no modules": {Verdict: Loaded}} {
		if err := tester.save(t.Context(), k, unit(name), bad); err != nil {
			t.Fatal(err)
		}
		if r := tester.Stored(k, unit(name)); r != nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// TestTimed has verdicts that time has decided: they are found twice, and anew
// in the next run; until then the store has them, but no other farm.
func TestTimed(t *testing.T) {
	s, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	k := Kernel{Release: "6.1.0-1-amd64", Arch: "x86_64"}
	for name, tt := range map[string]struct {
		verdict Verdict
		script  *ScriptReport
		timed   bool
	}{
		"a module hangs":        {Hung, nil, true},
		"a script is killed":    {Failed, &ScriptReport{Status: 137}, true},
		"a script fails":        {Failed, &ScriptReport{Status: 1}, false},
		"a module fails":        {Failed, nil, false},
		"a script is all right": {Loaded, &ScriptReport{}, false},
	} {
		u := &Unit{Modules: []Module{{File: "a.ko", SHA256: name}}}
		r := &Report{Verdict: tt.verdict, Script: tt.script, Modules: []ModuleReport{{Module: "a.ko", Verdict: tt.verdict}}}
		if timed(r) != tt.timed {
			t.Errorf("%s: timed %v", name, !tt.timed)
		}
		var shared told
		tester := &Tester{Store: s, Shared: &shared}
		if err := tester.save(t.Context(), k, u, r); err != nil {
			t.Fatal(err)
		}
		if tester.Stored(k, u) == nil {
			t.Errorf("%s: not kept", name)
		}
		if known := tester.known(t.Context(), k, u) != nil; known == tt.timed || (len(shared) == 0) != tt.timed {
			t.Errorf("%s: known %v, told to others %d times", name, known, len(shared))
		}
	}
}

// told is a Shared that notes what it is given.
type told []string

func (s *told) Push(_ context.Context, _, what string) { *s = append(*s, what) }
func (s *told) Pull(context.Context, string, string)   {}

// TestSaveShared has verdicts from boots with others and without: others are not
// told of the first, and who wants boots of one module version takes none.
func TestSaveShared(t *testing.T) {
	s, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	var shared told
	tester := &Tester{Store: s, Shared: &shared}
	k := Kernel{Release: "6.1.0-1-amd64", Arch: "x86_64"}
	alone := &Tester{Store: s, Alone: true}
	for _, beside := range [][]string{{"other/1"}, nil} {
		name := strings.Join(append(beside, "a"), " ")
		u := &Unit{Name: name, Modules: []Module{{File: "a.ko", SHA256: name}}}
		r := &Report{Verdict: Loaded, Modules: []ModuleReport{{Module: "a.ko", Verdict: Loaded}}, Beside: beside}
		if err := tester.save(t.Context(), k, u, r); err != nil {
			t.Fatal(err)
		}
		if got := tester.Stored(k, u); got == nil || !slices.Equal(got.Beside, beside) {
			t.Errorf("beside %q: stored %+v", beside, got)
		}
		if got := alone.Stored(k, u); (got == nil) != (beside != nil) {
			t.Errorf("beside %q: alone %+v", beside, got)
		}
	}
	if !slices.Equal(shared, told{"a"}) {
		t.Errorf("others were told of %q", shared)
	}
}
