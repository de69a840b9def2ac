package deb

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"
)

// field is one field of a control file.
type field struct{ name, value string }

// paragraph writes fields that have a value, in their order.
func paragraph(fields []field) []byte {
	var b bytes.Buffer
	for _, f := range fields {
		switch {
		case strings.HasPrefix(f.value, "\n"):
			fmt.Fprintf(&b, "%s:%s\n", f.name, f.value)
		case f.value != "":
			fmt.Fprintf(&b, "%s: %s\n", f.name, f.value)
		}
	}
	return b.Bytes()
}

// control lists the members of control.tar.
func (b binary) control(sums []sum, size int64) (tree, error) {
	fields := []field{{"Package", b.name}, {"Version", b.version}, {"Architecture", b.arch},
		{"Maintainer", b.info.Maintainer}, {"Installed-Size", fmt.Sprint(size)}}
	fields = append(fields, b.fields...)
	fields = append(fields, b.info.relations()...)
	fields = append(fields, field{"Section", b.info.Section}, field{"Priority", b.info.Priority},
		field{"Homepage", b.info.Homepage}, field{"Description", description(b.about)})
	t := newTree()
	if err := t.file("control", 0o644, paragraph(fields)); err != nil {
		return nil, err
	}
	var md5sums, conffiles bytes.Buffer
	for _, s := range sums {
		if strings.HasPrefix(s.name, "etc/") {
			fmt.Fprintf(&conffiles, "/%s\n", s.name)
		}
		fmt.Fprintf(&md5sums, "%s  %s\n", s.md5, s.name)
	}
	if err := t.file("md5sums", 0o644, md5sums.Bytes()); err != nil {
		return nil, err
	}
	if conffiles.Len() > 0 {
		if err := t.file("conffiles", 0o644, conffiles.Bytes()); err != nil {
			return nil, err
		}
	}
	for _, name := range sortedKeys(b.scripts) {
		if err := t.file(name, 0o755, b.scripts[name]); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// relations are the fields that the caller adds, in a fixed order.
func (i Info) relations() []field {
	var fields []field
	for _, name := range relations {
		fields = append(fields, field{name, i.Relations[name]})
	}
	return fields
}

// textWidth is the width of a description, in characters.
const textWidth = 76

// about makes the paragraphs of a description: synopsis and text are the
// package's, the summary and the description the module's.
func (i Info) about(synopsis, text string) []string {
	if i.Summary != "" {
		text += "\n\n" + i.Module + ": " + strings.TrimSuffix(i.Summary, ".") + "."
	}
	if i.Description != "" {
		text += "\n\n" + i.Description
	}
	return append([]string{synopsis}, strings.Split(text, "\n")...)
}

// description folds lines into a Description field's value (Debian policy
// 5.6.13): the first is the synopsis.
func description(lines []string) string {
	var b strings.Builder
	b.WriteString(lines[0])
	blank := true // none at the start, none after another
	for _, line := range lines[1:] {
		line = strings.TrimRight(strings.ReplaceAll(line, "\t", "        "), " \f")
		switch {
		case line == "" && !blank:
			b.WriteString("\n .")
		case strings.HasPrefix(line, " "):
			b.WriteString("\n " + line)
		case line != "":
			for _, l := range fold(line, textWidth) {
				b.WriteString("\n " + l)
			}
		}
		blank = line == ""
	}
	return strings.TrimSuffix(b.String(), "\n .")
}

// fold breaks a line between words.
func fold(line string, width int) []string {
	var lines []string
	var l string
	for word := range strings.FieldsSeq(line) {
		if l != "" && len(l)+1+len(word) > width {
			lines = append(lines, l)
			l = ""
		}
		if l != "" {
			l += " "
		}
		l += word
	}
	return append(lines, l)
}

// docs adds the two files that every package has to have (Debian policy 12.5
// and 12.7).
func (b binary) docs() error {
	dir := "usr/share/doc/" + b.name + "/"
	if err := b.tree.file(dir+"copyright", 0o644, b.info.copyright()); err != nil {
		return err
	}
	data, err := gzipBest(b.info.changelog(b.name, b.version, b.news))
	if err != nil {
		return err
	}
	return b.tree.file(dir+changelogName(b.version), 0o644, data)
}

// changelogName: a version without a revision is a native one, where there is
// one changelog only.
func changelogName(version string) string {
	if _, native := upstream(version); native {
		return "changelog.gz"
	}
	return "changelog.Debian.gz"
}

func (i Info) changelog(source, version, news string) []byte {
	return fmt.Appendf(nil, "%s (%s) unstable; urgency=medium\n\n  * %s\n\n -- %s  %s\n",
		source, version, strings.Join(fold(news, textWidth), "\n    "), i.Maintainer,
		time.Unix(i.Epoch.Unix(), 0).UTC().Format(time.RFC1123Z))
}

// licenses explains what MODULE_LICENSE says (include/linux/module.h), and
// names the text that every Debian has.
var licenses = map[string]struct{ says, common string }{
	"GPL":                       {"the GNU General Public License version 2, or version 2 or later as the source files say", "GPL-2"},
	"GPL v2":                    {"the GNU General Public License version 2, or version 2 or later as the source files say", "GPL-2"},
	"GPL and additional rights": {"the GNU General Public License version 2, with rights that the source files add", "GPL-2"},
	"Dual BSD/GPL":              {"at your choice a BSD license, as the source files have it, or the GNU General Public License version 2", "GPL-2"},
	"Dual MIT/GPL":              {"at your choice the MIT license, as the source files have it, or the GNU General Public License version 2", "GPL-2"},
	"Dual MPL/GPL":              {"at your choice the Mozilla Public License, as the source files have it, or the GNU General Public License version 2", "GPL-2"},
	"Proprietary":               {"a proprietary license, which the source files have; it may not allow you to distribute this package", ""},
}

// copyright makes the copyright file.
func (i Info) copyright() []byte {
	if i.Copyright != nil {
		return i.Copyright
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "This package was made by kofarm from the source of %s %s.\n", i.Module, i.ModuleVersion)
	if i.Homepage != "" {
		fmt.Fprintf(&b, "Its home is %s\n", i.Homepage)
	}
	b.WriteString("\nCopyright:\n\n")
	authors := unique(i.Authors)
	if len(authors) == 0 {
		authors = []string{"the authors of " + i.Module + ", as its source files name them"}
	}
	for _, a := range authors {
		fmt.Fprintf(&b, "  %s\n", a)
	}
	b.WriteString("\nLicense:\n")
	var common []string
	for _, l := range unique(i.Licenses) {
		known, ok := licenses[l]
		if !ok {
			known.says = "a license that the source files have"
		}
		if known.common != "" {
			common = append(common, known.common)
		}
		text := fmt.Sprintf("Modules that declare MODULE_LICENSE(%q) are under %s.", l, known.says)
		fmt.Fprintf(&b, "\n%s\n", strings.Join(fold(text, textWidth), "\n"))
	}
	for _, name := range unique(common) {
		fmt.Fprintf(&b, "\nOn Debian systems, the text of that GNU General Public License is in\n/usr/share/common-licenses/%s\n", name)
	}
	return b.Bytes()
}

// unique sorts strings and drops what is there twice.
func unique(list []string) []string { return slices.Compact(slices.Sorted(slices.Values(list))) }
