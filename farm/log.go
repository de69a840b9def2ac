package farm

import (
	"bytes"
	"regexp"
	"strings"
	"unicode/utf8"
)

// maxText bounds what a record keeps of a build's own words, in bytes.
const maxText = 500

// Lines of a log that say what went wrong, the surest first.
var errorLines = []*regexp.Regexp{
	regexp.MustCompile(`(?i)^[^ ].*:\d+(:\d+)?: (fatal )?error:`), // a compiler
	regexp.MustCompile(`^(ERROR: modpost:|ERROR:|error:)`),        // modpost and scripts
	regexp.MustCompile(`: (fatal error|undefined reference|command not found|No such file or directory)`),
	regexp.MustCompile(`\*\*\* .*(Error|Stop)`), // make
	regexp.MustCompile(`(?i)\berror\b`),
	regexp.MustCompile(`^kofarm: `),
}

// firstError gives the log's first line of the surest kind that it has.
func firstError(log []byte) string {
	found := make([]string, len(errorLines))
	for line := range bytes.Lines(log) {
		line = bytes.TrimRight(line, "\r\n")
		if len(line) > 4096 {
			line = line[:4096]
		}
		for i, re := range errorLines {
			if found[i] == "" && re.Match(line) {
				found[i] = clip(string(line))
				break
			}
		}
		if found[0] != "" {
			break
		}
	}
	for _, f := range found {
		if f != "" {
			return f
		}
	}
	return ""
}

// clip makes a build's own words safe to print: one line of valid text without
// control characters, of at most maxText bytes.
func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "�"))
	if len(s) <= maxText {
		return s
	}
	cut := maxText
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
