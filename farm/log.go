package farm

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxText bounds what a record keeps of a build's own words, in bytes.
const maxText = 500

// Lines of a log that say what went wrong, the surest first.
var errorLines = []*regexp.Regexp{
	regexp.MustCompile(`(?i)^[^ ].*:\d+(:\d+)?: (fatal )?error:`), // a compiler
	regexp.MustCompile(`^(ERROR: modpost:|ERROR:|error:)`),        // modpost and scripts
	regexp.MustCompile(`: (fatal error|undefined reference|command not found|cannot execute|No such file or directory|` +
		`Permission denied|Resource temporarily unavailable|Cannot allocate memory|No space left on device)|^Hunk #\d+ FAILED`),
	regexp.MustCompile(`\*\*\* .*(Error|Stop)`), // make
	regexp.MustCompile(`(?i)\berror\b`),
}

// suspicious are the words without which no line is one of the above.
var suspicious = regexp.MustCompile(`(?i)error|undefined reference|command not found|cannot execute|no such file|permission denied|` +
	`resource temporarily|cannot allocate|no space left|\*\*\*|^hunk #`)

// control is a terminal's control sequence (ECMA-48, 5.4), such as one that sets a colour.
var control = regexp.MustCompile(`\x1b\[[0-?]*[ -/]*[@-~]`)

// verdict begins the recipe's last line, which the record has, too.
const verdict = "kofarm: failed: "

// frame are lines that say nothing of what went wrong: the recipe's and make's own.
var frame = regexp.MustCompile(`^(# |kofarm: failed: |make(\[\d+\])?: (Entering|Leaving) directory |\s*$)`)

// maxLine bounds how much of a line is looked at, in bytes.
const maxLine = 4096

// firstError gives the log's first line of the surest kind that it has. Where it
// has none, and the recipe says that the build has failed, it is the last line
// before that.
func firstError(log io.Reader) (string, error) {
	found := make([]string, len(errorLines))
	var last []byte
	failed := false
	lines := bufio.NewReaderSize(log, maxLine)
	for found[0] == "" {
		line, err := readLine(lines)
		if bytes.IndexByte(line, 0x1b) >= 0 {
			line = control.ReplaceAll(line, nil)
		}
		if kind := kindOf(line); kind >= 0 && found[kind] == "" {
			found[kind] = clip(string(line))
		}
		if bytes.HasPrefix(line, []byte(verdict)) {
			failed = true
		} else if !failed && !frame.Match(line) {
			last = append(last[:0], line...)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
	}
	for _, f := range found {
		if f != "" {
			return f, nil
		}
	}
	if !failed {
		return "", nil
	}
	return clip(string(last)), nil
}

// phaseLine begins the line by which the recipe begins a phase.
const phaseLine = "# phase: "

// lastPhase gives the phase in which the log ends, as the end of a sentence; "" where
// it has none.
func lastPhase(log io.Reader) (string, error) {
	last := ""
	lines := bufio.NewReaderSize(log, maxLine)
	for {
		line, err := readLine(lines)
		if phase, ok := bytes.CutPrefix(line, []byte(phaseLine)); ok {
			last = ", in phase " + clip(string(phase))
		}
		if errors.Is(err, io.EOF) {
			return last, nil
		}
		if err != nil {
			return "", err
		}
	}
}

// readLine gives the first maxLine bytes of the next line, without its end.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		line = bytes.Clone(line)
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = r.ReadSlice('\n')
		}
	}
	return bytes.TrimRight(line, "\r\n"), err
}

// kindOf gives the index in errorLines of a line's kind, -1 for a harmless one.
func kindOf(line []byte) int {
	if !suspicious.Match(line) || bytes.HasPrefix(line, []byte(verdict)) {
		return -1
	}
	return slices.IndexFunc(errorLines, func(re *regexp.Regexp) bool { return re.Match(line) })
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
