package recipe_test

import (
	"fmt"
	"strings"
)

// module is one module's source, and what becomes of it.
type module struct {
	name  string            // PACKAGE_NAME; the version is 1.0
	conf  string            // follows the lines of base in dkms.conf
	own   bool              // conf is all of dkms.conf
	files map[string]string // beside dkms.conf and x.c; a name that ends in ! is executable
	more  string            // lines of the farm file

	outcome, phase string // built if both are empty, failed if only outcome is
	message        string // part of it
	ko             string // the built modules' names without .ko, by spaces; "" is name
	log            string // part of it
	unsteady       string // part of it; "" is none
	first          string // part of the first error line
	// alone says why real dkms is not asked.
	alone string
}

// base begins a dkms.conf: a MAKE that takes no time.
func base(name string) string {
	return fmt.Sprintf("PACKAGE_NAME=%q\nPACKAGE_VERSION=\"1.0\"\nDEST_MODULE_LOCATION[0]=\"/updates\"\nMAKE[0]=\"gcc -g -c -o %s.ko x.c\"\n", name, name)
}

func (m module) dkmsConf() string {
	if m.own {
		return m.conf
	}
	return base(m.name) + m.conf
}

// compile is a MAKE that makes the named modules.
func compile(names ...string) string {
	var b strings.Builder
	for i, n := range names {
		if i > 0 {
			b.WriteString(" && ")
		}
		fmt.Fprintf(&b, "gcc -g -c -o %s.ko x.c", n)
	}
	return `MAKE[0]="` + b.String() + "\"\n"
}

// Reasons not to ask the real dkms.
const (
	ourRule   = "a rule of kofarm's own"
	newer     = "DKMS 3.4's way, which no Debian has yet"
	real      = "it would want a real kernel's headers"
	dangerous = "it would run on the machine, without limits"
)

// hello is a module that needs nothing.
const hello = "#include <linux/module.h>\nMODULE_LICENSE(\"GPL\");\nint init_module(void) { return 0; }\n"

// kbuild makes the files of a module that is built by the kernel's Makefiles.
func kbuild(source string) map[string]string {
	return map[string]string{"Makefile": "obj-m += x.o\n", "x.c": source}
}

const kbuildConf = "BUILT_MODULE_NAME[0]=x\nunset MAKE\n"

// patch changes x.c, the second one a line that is not there.
const (
	goodPatch = "--- a/x.c\n+++ b/x.c\n@@ -1 +1 @@\n-int x;\n+int y;\n"
	badPatch  = "--- a/x.c\n+++ b/x.c\n@@ -1 +1 @@\n-int z;\n+int y;\n"
)

// many names n modules in arrays, and gives their names.
func many(n int) (conf string, names []string) {
	var b strings.Builder
	for i := range n {
		names = append(names, fmt.Sprintf("m%02d", i))
		fmt.Fprintf(&b, "BUILT_MODULE_NAME[%d]=m%02d\nDEST_MODULE_LOCATION[%d]=/updates/sub\n", i, i, i)
	}
	b.WriteString("MAKE[0]='for i in \\$(seq -w 0 " + fmt.Sprint(n-1) + "); do cp x.o m\\$i.ko; done'\n")
	return b.String(), names
}

func modules() []module {
	manyConf, manyNames := many(46)
	return []module{
		// The directives.
		{name: "kernel", conf: `BUILD_EXCLUSIVE_KERNEL="^5\."`, outcome: "excluded", message: `BUILD_EXCLUSIVE_KERNEL="^5\." does not match 6.1`},
		{name: "kernel-fits", conf: `BUILD_EXCLUSIVE_KERNEL="^(5|6\.1)\."`},
		{name: "min", conf: "BUILD_EXCLUSIVE_KERNEL_MIN=6.12", outcome: "excluded", message: "is older than BUILD_EXCLUSIVE_KERNEL_MIN"},
		{name: "min-fits", conf: "BUILD_EXCLUSIVE_KERNEL_MIN=6.1"},
		{name: "max", conf: "BUILD_EXCLUSIVE_KERNEL_MAX=5.99", outcome: "excluded", message: "is newer than BUILD_EXCLUSIVE_KERNEL_MAX"},
		{name: "max-fits", conf: "BUILD_EXCLUSIVE_KERNEL_MAX=6.2"},
		{name: "max-same", conf: "BUILD_EXCLUSIVE_KERNEL_MAX=6.1", outcome: "excluded", message: "is newer than"},
		{name: "obsolete", conf: "OBSOLETE_BY=6.0", outcome: "excluded", message: "is newer than BUILD_EXCLUSIVE_KERNEL_MAX=\"6.0\""},
		{name: "arch", conf: "BUILD_EXCLUSIVE_ARCH=aarch64", outcome: "excluded", message: `BUILD_EXCLUSIVE_ARCH="aarch64" does not match x86_64`},
		{name: "arch-fits", conf: "BUILD_EXCLUSIVE_ARCH='x86_64|aarch64'"},
		{name: "config", conf: "BUILD_EXCLUSIVE_CONFIG='CONFIG_MODULES CONFIG_NO_SUCH'", outcome: "excluded", message: "the kernel lacks CONFIG_NO_SUCH"},
		{name: "config-not", conf: "BUILD_EXCLUSIVE_CONFIG='!CONFIG_MODULES'", outcome: "excluded", message: "the kernel has CONFIG_MODULES"},
		{name: "config-fits", conf: "BUILD_EXCLUSIVE_CONFIG='CONFIG_MODULES !CONFIG_NO_SUCH'"},
		{name: "index-0", conf: "BUILD_EXCLUSIVE_KERNEL[0]='^5'", outcome: "excluded", message: "does not match"},
		{name: "one-of-two", conf: "BUILT_MODULE_NAME=(a b)\nDEST_MODULE_LOCATION[1]=/extra\nBUILD_EXCLUSIVE_ARCH[1]=ia64\n" + compile("a"),
			ko: "a", log: `b is excluded: BUILD_EXCLUSIVE_ARCH="ia64" does not match x86_64`, unsteady: "excludes some of its modules", alone: newer},
		{name: "both", conf: "BUILT_MODULE_NAME=(a b c)\nDEST_MODULE_LOCATION=(/extra /extra /extra)\nBUILD_EXCLUSIVE_KERNEL=([0]=^6 [1]=^5)\nBUILD_EXCLUSIVE_CONFIG[2]=CONFIG_NO\n" + compile("a"),
			ko: "a", unsteady: "excludes some of its modules", alone: newer},
		{name: "by-headers", conf: "if grep -q ^CONFIG_MODULES=y $kernel_config; then BUILT_MODULE_NAME[0]=a; fi\n" + compile("a"), ko: "a", unsteady: "names other modules"},
		{name: "by-kernel", conf: "if [[ $kernelver = 6.1.* && -d $kernel_source_dir ]]; then PRE_BUILD=; fi\nMAKE[0]+=\" -I$kernel_source_dir\"\n"},
		{name: "all-excluded", conf: "BUILT_MODULE_NAME=(a b)\nDEST_MODULE_LOCATION[1]=/extra\nBUILD_EXCLUSIVE_KERNEL[0]=''\nBUILD_EXCLUSIVE_ARCH=ia64\n",
			outcome: "excluded", message: "ia64"},
		{name: "arrays", conf: "BUILT_MODULE_NAME=(a b)\nDEST_MODULE_LOCATION=(/updates /kernel/drivers)\n" + compile("a", "b"), ko: "a b"},
		{name: "plain", conf: "BUILT_MODULE_NAME=a\nDEST_MODULE_NAME=b\nDEST_MODULE_LOCATION=/extra\nMAKE='gcc -c -o a.ko x.c'\n", ko: "b"},
		{name: "defaults"},
		{name: "dest-name", conf: "DEST_MODULE_NAME[0]=other\n", ko: "other"},
		{name: "location", conf: "BUILT_MODULE_LOCATION[0]=sub/dir\nMAKE[0]='gcc -c -o sub/dir/location.ko x.c'\n", files: map[string]string{"sub/dir/y": ""}},
		{name: "gap", conf: "BUILT_MODULE_NAME=([0]=a [2]=c)\nDEST_MODULE_LOCATION[2]=/extra\n", phase: "conf", message: "no BUILT_MODULE_NAME[1]"},
		{name: "gap-filled", conf: "BUILT_MODULE_NAME=([0]=a [2]=c)\nBUILT_MODULE_NAME[1]=b\nDEST_MODULE_LOCATION=([2]=/extra [1]=/extra [0]=/extra)\n" + compile("a", "b", "c"), ko: "a b c"},
		{name: "no-module", conf: "unset DEST_MODULE_LOCATION MAKE\nMAKE=true\n", ko: " ", log: "names no module"},
		{name: "many", conf: manyConf + "PRE_BUILD=pre.sh\n", ko: strings.Join(manyNames, " "), files: map[string]string{"pre.sh!": "#!/bin/sh\ngcc -c -o x.o x.c\n"}},
		{name: "variables", conf: `MAKE[0]="gcc -c -o ${PACKAGE_NAME}.ko -DK=$kernelver -DA=$arch x.c && test -d $kernel_source_dir -a -f $kernel_config -a $dkms_tree = /var/lib/dkms"`},
		{name: "script", conf: "case $(uname -s) in Linux) DEST_MODULE_NAME=on-linux ;; esac\nif [ -f $source_tree/script-1.0/x.c ]; then DEST_MODULE_LOCATION=/extra; fi", ko: "on-linux"},
		{name: "cr", conf: "PACKAGE_NAME=\"cr\"\r\nPACKAGE_VERSION=\"1.0\"\r\nBUILT_MODULE_NAME[0]=\"a\"\r\nDEST_MODULE_LOCATION[0]=\"/updates\"\r\nMAKE[0]=\"gcc -c -o a.ko x.c\"\r\n", own: true, ko: "a"},
		{name: "spaces", conf: "BUILD_EXCLUSIVE_CONFIG='  CONFIG_MODULES   CONFIG_NET '\nMAKE[0]='gcc  -c   -o \"spaces.ko\" x.c'\n"},

		// MAKE.
		{name: "make-match", conf: "MAKE[0]='exit 3'\nMAKE[1]='gcc -c -o make-match.ko x.c'\nMAKE_MATCH[1]='^6\\.'\n"},
		{name: "make-match-no", conf: "MAKE[1]='exit 3'\nMAKE_MATCH[1]='^5\\.'\n"},
		{name: "make-last", conf: "MAKE=('exit 3' 'exit 4' 'gcc -c -o make-last.ko x.c')\nMAKE_MATCH=('' ^6 6)\n"},
		{name: "make-gap", conf: "unset MAKE\nMAKE=([0]='gcc -c -o make-gap.ko x.c' [2]='exit 3')\nMAKE_MATCH[2]=6\n"},
		{name: "make-fails", conf: "MAKE[0]='echo something is wrong; exit 3'\n", phase: "make", message: "make ended with status 3"},
		{name: "make-lies", conf: "MAKE[0]=true\n", phase: "modules", message: "the build made no make-lies.ko"},
		{name: "make-jobs", conf: "MAKE[0]='make -f rules && make -f rules again'\n", files: map[string]string{"rules": "make-jobs.ko:\n\tgcc -c -o $@ x.c\nagain: make-jobs.ko\n"}, log: "# command: make -j"},
		{name: "make-cd", conf: "MAKE[0]='cd sub && gcc -c -o ../make-cd.ko ../x.c'\n", files: map[string]string{"sub/y": ""}},
		{name: "make-dirty", conf: "MAKE[0]='test ! -e left && touch left && gcc -c -o make-dirty.ko x.c'\n"},

		// Patches and scripts.
		{name: "patch", conf: "PATCH[0]=good.patch\nMAKE[0]='grep -q y x.c && gcc -c -o patch.ko x.c'\n", files: map[string]string{"patches/good.patch": goodPatch}, log: "# phase: patch: good.patch"},
		{name: "patch-bad", conf: "PATCH[0]=bad.patch\n", files: map[string]string{"patches/bad.patch": badPatch}, phase: "patch", message: "bad.patch does not apply"},
		{name: "patch-none", conf: "PATCH[0]=none.patch\n", phase: "patch", message: "none.patch is not in"},
		{name: "patch-dots", conf: "PATCH[0]=../good.patch\n", files: map[string]string{"good.patch": goodPatch, "patches/y": ""}, phase: "patch", message: ".. in its path"},
		{name: "patch-match", conf: "PATCH=(good.patch bad.patch)\nPATCH_MATCH=(^6 ^5)\nMAKE[0]='grep -q y x.c && gcc -c -o patch-match.ko x.c'\n", files: map[string]string{"patches/good.patch": goodPatch, "patches/bad.patch": badPatch}},
		{name: "pre", conf: "PRE_BUILD='pre.sh generated.c'\nMAKE[0]='gcc -c -o pre.ko generated.c'\n", files: map[string]string{"pre.sh!": "#!/bin/sh\ncp x.c $1\n"}, log: "# phase: pre_build"},
		{name: "pre-fails", conf: "PRE_BUILD=pre.sh\n", files: map[string]string{"pre.sh!": "#!/bin/sh\nexit 9\n"}, phase: "pre_build", message: "status 9"},
		{name: "pre-plain", conf: "PRE_BUILD=pre.sh\n", files: map[string]string{"pre.sh": "#!/bin/sh\nexit 9\n"}, log: "not executable"},
		{name: "post", conf: "POST_BUILD=post.sh\n", files: map[string]string{"post.sh!": "#!/bin/sh\ntest -f ../*/x86_64/module/post.ko && ! readelf -S ../*/x86_64/module/post.ko | grep -q debug_info\n"}, log: "# phase: post_build"},
		{name: "post-fails", conf: "POST_BUILD=post.sh\n", files: map[string]string{"post.sh!": "#!/bin/sh\nexit 9\n"}, phase: "post_build", message: "status 9"},
		{name: "post-removes", conf: "POST_BUILD=post.sh\n", files: map[string]string{"post.sh!": "#!/bin/sh\nrm ../*/x86_64/module/*\n"}, phase: "post_build", message: "has removed post-removes.ko", alone: ourRule},
		{name: "strip-no", conf: "STRIP=no\nPOST_BUILD=post.sh\n", files: map[string]string{"post.sh!": "#!/bin/sh\nreadelf -S ../*/x86_64/module/strip-no.ko | grep -q debug_info\n"}},
		{name: "strip-second", conf: "BUILT_MODULE_NAME=(a b)\nDEST_MODULE_LOCATION[1]=/extra\nSTRIP=(no yes)\nPOST_BUILD=post.sh\n" + compile("a", "b"), ko: "a b",
			files: map[string]string{"post.sh!": "#!/bin/sh\ncd ../*/x86_64/module && readelf -S a.ko | grep -q debug_info && ! readelf -S b.ko | grep -q debug_info\n"}},
		{name: "strip-text", conf: "MAKE[0]='echo text > strip-text.ko'\n", phase: "strip", message: "strip-text.ko cannot be stripped", alone: ourRule},
		{name: "depends", conf: "BUILD_DEPENDS[0]=other\n", phase: "depends", message: "BUILD_DEPENDS wants other"},

		// Mistakes in dkms.conf.
		{name: "no-name", conf: "unset PACKAGE_NAME\n", phase: "conf", message: "sets no PACKAGE_NAME"},
		{name: "no-version", conf: "unset PACKAGE_VERSION\n", phase: "conf", message: "sets no PACKAGE_VERSION"},
		{name: "other-name", conf: "PACKAGE_NAME=another\n", phase: "conf", message: `PACKAGE_NAME="another", the farm file other-name`, alone: ourRule},
		{name: "other-version", conf: "PACKAGE_VERSION=2.0\n", phase: "conf", message: `PACKAGE_VERSION="2.0", the farm file 1.0`, alone: ourRule},
		{name: "dots", conf: "PACKAGE_NAME=../../dots\n", phase: "conf", message: `PACKAGE_NAME="../../dots"`, alone: ourRule},
		{name: "bad-location", conf: "DEST_MODULE_LOCATION[0]=/lib/modules\n", phase: "conf", message: "DEST_MODULE_LOCATION[0] does not begin with"},
		{name: "no-location", conf: "BUILT_MODULE_NAME=(a b)\n", phase: "conf", message: "no DEST_MODULE_LOCATION[1]"},
		{name: "built-ko", conf: "BUILT_MODULE_NAME[0]=a.ko\n", phase: "conf", message: "BUILT_MODULE_NAME[0] ends in"},
		{name: "dest-o", conf: "DEST_MODULE_NAME[0]=a.o\n", phase: "conf", message: "DEST_MODULE_NAME[0] ends in"},
		{name: "dest-path", conf: "DEST_MODULE_NAME[0]=../../a\n", phase: "conf", message: "is no file name", alone: ourRule},
		{name: "dest-space", conf: "DEST_MODULE_NAME[0]='a b'\n", phase: "conf", message: `"a b" is no file name`, alone: ourRule},
		{name: "dest-line", conf: "DEST_MODULE_NAME[0]=$'a\\nb'\n", phase: "conf", message: `"a b" is no file name`, alone: ourRule},
		{name: "built-twice", conf: "BUILT_MODULE_NAME=(a a)\nDEST_MODULE_NAME=(b c)\nDEST_MODULE_LOCATION[1]=/extra\n", phase: "conf", message: "two modules have the BUILT_MODULE_NAME a"},
		{name: "dest-twice", conf: "BUILT_MODULE_NAME=(a b)\nDEST_MODULE_NAME=(c c)\nDEST_MODULE_LOCATION[1]=/extra\n", phase: "conf", message: "two modules have the DEST_MODULE_NAME c"},
		{name: "huge-index", conf: "BUILT_MODULE_NAME[99999999]=a\n", phase: "conf", message: "more than 4096 modules", alone: ourRule},
		{name: "syntax", conf: "if then\n", log: "syntax error"}, // what has been read until then counts
		{name: "exits", conf: "exit 0\n", phase: "conf", message: "ended its shell before its end was reached (status 0)"},
		{name: "stub", own: true, conf: base("stub"), phase: "copy", message: "nothing but dkms.conf"},

		// Hostile ones.
		{name: "loops", conf: "while :; do :; done\n", more: "timeout: 3s", phase: "timeout", message: "stopped after 3s", alone: dangerous},
		{name: "fills", conf: "head -c 1G /dev/zero > /var/lib/dkms/fill\n", phase: "copy", message: "has filled its disk", alone: dangerous},
		{name: "fills-make", conf: "MAKE[0]='head -c 1G /dev/zero > fill'\n", phase: "make", message: "has filled its disk", alone: dangerous},
		{name: "kills", conf: "kill -9 -1; kill -9 $$; kill -9 $BASHPID\n", phase: "conf", message: "ended its shell", alone: dangerous},
		{name: "forks", conf: "MAKE[0]='f() { f | f; }; f'\n", more: "timeout: 3s", phase: "?", alone: dangerous},
		{name: "shouts", conf: "MAKE[0]='yes'\n", phase: "output", message: "limits.log", alone: dangerous},
		{name: "eats", conf: "MAKE[0]='x=a; while :; do x=\\$x\\$x; done'\n", phase: "make", message: "limits.memory", alone: dangerous},
		{name: "fd-3", conf: "echo '{}' >&3\nMAKE[0]='echo junk >&3 || gcc -c -o fd-3.ko x.c'\n", log: "3: Bad file descriptor", alone: ourRule},
		{name: "fd-of-1", conf: "MAKE[0]='echo junk > /proc/1/fd/3; gcc -c -o fd-of-1.ko x.c'\n", phase: "output", message: "reading the build's output", alone: ourRule},
		{name: "answers", conf: "MAKE[0]='tar -C / -cf /proc/1/fd/3 etc/passwd; gcc -c -o answers.ko x.c'\n", phase: "output", message: "has something after its end", alone: ourRule},
		{name: "link", conf: "MAKE[0]='ln -s /etc/passwd link.ko'\n", phase: "modules", message: "link.ko is no regular file", alone: ourRule},
		{name: "fifo", conf: "MAKE[0]='mkfifo fifo.ko'\n", phase: "modules", message: "fifo.ko is no regular file", alone: ourRule},
		{name: "folder", conf: "MAKE[0]='mkdir folder.ko'\n", phase: "modules", message: "folder.ko is no regular file", alone: ourRule},
		{name: "redefines", conf: "finish() { :; }; fail() { :; }; printf() { :; }; kernelver=1; num_modules=9; exec 1>&- 2>&-\n", alone: ourRule},
		{name: "background", conf: "MAKE[0]='(sleep 1000 & setsid sleep 1000 &) ; gcc -c -o background.ko x.c'\n", alone: dangerous},

		// The kernel's own Makefiles.
		{name: "real", conf: kbuildConf, ko: "x", files: kbuild(hello), log: "LD [M]", alone: real},
		{name: "error", conf: kbuildConf, files: kbuild(hello + "int f(void) { return undeclared; }\nint g(void) { return 1 }\n"),
			phase: "make", message: "make ended with status 2", first: "x.c:4:", log: "# exit code: 2", alone: real},
		{name: "header", conf: kbuildConf, files: kbuild("#include <linux/no_such_header.h>\n"), phase: "make", first: "fatal error: linux/no_such_header.h", alone: real},
		{name: "symbol", conf: kbuildConf, files: kbuild(hello + "extern void nowhere(void);\nvoid h(void) { nowhere(); }\n"), phase: "make", first: "\"nowhere\"", alone: real},
	}
}
