package boot

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Verdict says what a kernel makes of a module.
type Verdict string

// The verdicts, from good to bad.
const (
	Loaded   Verdict = "loaded"
	Refused  Verdict = "refused"  // by the module itself: what it drives is not there
	Failed   Verdict = "failed"   // its init function gives another error, or the user's test does
	Rejected Verdict = "rejected" // by the kernel's loader
	Crashed  Verdict = "crashed"  // an oops, a panic, a warning, a lockup
	Hung     Verdict = "hung"     // nothing happened until the time was over
)

// Verdicts lists the verdicts, from good to bad.
func Verdicts() []Verdict { return []Verdict{Loaded, Refused, Failed, Rejected, Crashed, Hung} }

// worse compares verdicts.
func worse(a, b Verdict) bool { return slices.Index(Verdicts(), a) > slices.Index(Verdicts(), b) }

// Report is the verdict on a unit.
type Report struct {
	Verdict Verdict        `json:"verdict"` // the worst of its modules' and its script's
	Modules []ModuleReport `json:"modules"` // in the order in which they were loaded
	Script  *ScriptReport  `json:"script,omitzero"`
	Notes   []string       `json:"notes,omitzero"` // of the kernel's own modules that could not be loaded before
	// Beside are the other module versions in the boot that gave the verdict, as
	// NAME/VERSION. They run in the same kernel, so one that means to can have it say
	// what it likes of the others.
	Beside []string `json:"beside,omitzero"`
}

// ModuleReport is the verdict on a module.
type ModuleReport struct {
	Module  string  `json:"module"` // file name
	Verdict Verdict `json:"verdict"`
	// Reason says more of a verdict other than loaded: vermagic, crc, symbol,
	// signature, format or parameter; an errno; warning, oops, lockup, panic,
	// reset, or report: it has written where the boot's report is written; script.
	Reason string `json:"reason,omitzero"`
	Step   string `json:"step,omitzero"` // load, script or unload: where it crashed or hung
	// Taint are the letters that the module taints the kernel with; a module of
	// one's own has OE, a signed and trusted one O.
	Taint    string   `json:"taint,omitzero"`
	Kept     string   `json:"kept,omitzero"`     // why it could not be unloaded
	Messages []string `json:"messages,omitzero"` // the kernel's, of load and unload
}

// ScriptReport is how the user's test of a unit ended.
type ScriptReport struct {
	Status   int      `json:"status"`            // 137: it was killed at the time limit
	Reason   string   `json:"reason,omitzero"`   // warning, if the kernel has warned during the script
	Output   []string `json:"output,omitzero"`   // its end
	Messages []string `json:"messages,omitzero"` // the kernel's, where it has warned
}

// killed says whether a script was ended at its limit, as timeout(1) tells.
func (s *ScriptReport) killed() bool { return s != nil && s.Status == 128+int(unix.SIGKILL) }

// Most that is kept of messages: lines, and bytes of one.
const (
	maxMessages = 80
	maxMessage  = 500
)

// Bits of the kernel's taint (Documentation/admin-guide/tainted-kernels.rst).
const (
	taintBadPage = 1 << 5
	taintDied    = 1 << 7
	taintWarn    = 1 << 9
	taintLockup  = 1 << 14

	taintFaults = taintBadPage | taintDied | taintWarn | taintLockup
)

// judge makes the report on a unit of what a boot has reported. crash is how the
// boot ended, if it ended in this unit; else nil.
func judge(l *loading, run *unitRun, crash *crash) *Report {
	r := &Report{Verdict: Loaded, Notes: slices.Clone(run.needs)}
	for _, name := range l.unknown {
		r.Notes = append(r.Notes, "the kernel has no module "+name)
	}
	if len(l.asked) > 0 {
		r.Notes = append(r.Notes, "the kernel asked for modules that were loaded before: "+strings.Join(l.asked, ", "))
	}
	for _, name := range l.names {
		m := judgeModule(l.files[name].File, run.find("load", name), run.find("unload", name), l.unreadable[name])
		r.Modules = append(r.Modules, m)
	}
	if s := run.find("script", ""); s != nil && s.done {
		r.Script, r.Verdict = judgeScript(s)
	}
	if crash != nil {
		r.blame(l, run, crash)
	}
	for _, m := range r.Modules {
		if worse(m.Verdict, r.Verdict) {
			r.Verdict = m.Verdict
		}
	}
	return r
}

func judgeScript(s *step) (*ScriptReport, Verdict) {
	r := &ScriptReport{Status: s.status, Output: cutFront(s.text)}
	switch {
	case s.warned():
		r.Reason, r.Messages = "warning", cut(s.kernel)
		return r, Crashed
	case s.status != 0:
		return r, Failed
	}
	return r, Loaded
}

// blame puts a crash on the module whose step it was in, or behind.
func (r *Report) blame(l *loading, run *unitRun, c *crash) {
	for i, name := range l.names {
		m := &r.Modules[i]
		switch {
		case name == c.at.module:
			m.Verdict, m.Reason, m.Step, m.Kept = c.verdict, c.reason, c.at.kind, ""
			m.Messages = cut(append(slices.Clip(m.Messages), c.messages...))
		case run.find("load", name) == nil: // the boot ended before
			m.Verdict, m.Reason = c.verdict, "not reached"
		}
	}
	if c.at.kind == "script" {
		r.Verdict = c.verdict
	}
}

func judgeModule(file string, load, unload *step, unreadable error) ModuleReport {
	m := ModuleReport{Module: file, Verdict: Loaded}
	if load == nil || !load.done {
		m.Verdict, m.Reason = Hung, "not reached" // blame says what is so
		return m
	}
	m.Messages = slices.Clone(load.kernel)
	if load.flags != "-" {
		m.Taint = load.flags
	}
	switch {
	case load.warned():
		m.Verdict, m.Reason, m.Step = Crashed, "warning", "load"
	case load.status != 0:
		m.Verdict, m.Reason = refusal(load)
		if unreadable != nil && m.Verdict == Rejected {
			m.Messages = append(m.Messages, "kofarm: "+unreadable.Error())
		}
	case slices.ContainsFunc(load.kernel, ignored.MatchString):
		m.Verdict, m.Reason = Rejected, "parameter"
	case load.state != "Live":
		m.Verdict, m.Reason = Failed, "state "+load.state
	}
	if unload != nil && unload.done {
		m.Messages = append(m.Messages, unload.kernel...)
		if unload.warned() && m.Verdict != Crashed {
			m.Verdict, m.Reason, m.Step = Crashed, "warning", "unload"
		}
		if unload.state != "-" {
			m.Kept = errorText(unload.text)
		}
	}
	m.Messages = cut(m.Messages)
	return m
}

// warned says whether the kernel has found a fault of its own in a step.
func (s *step) warned() bool {
	return (s.after&^s.before)&taintFaults != 0 || slices.ContainsFunc(s.kernel, warning.MatchString)
}

// ignored is what the kernel says of a parameter that a module does not have: it
// loads the module without (kernel/params.c and module/main.c).
var ignored = regexp.MustCompile(`unknown parameter '.*' ignored$`)

var warning = regexp.MustCompile(`^(WARNING: (CPU: \d+ PID: |at |.*:\d+ )|BUG: |------------\[ cut here \]|watchdog: BUG: )`)

// symptom is a text of the kernel's, and the reason of a verdict that it is for.
type symptom struct {
	reason string
	text   *regexp.Regexp
}

// loaderTexts are what the kernel's loader says of a module that it rejects
// (kernel/module).
var loaderTexts = []symptom{
	{"vermagic", regexp.MustCompile(`version magic '`)},
	{"crc", regexp.MustCompile(`disagrees about version of symbol|no symbol version for`)},
	{"symbol", regexp.MustCompile(`Unknown symbol|uses symbol \S+ from namespace`)},
	{"signature", regexp.MustCompile(`Loading of .* is rejected|module verification failed: .*rejected`)},
	{"parameter", regexp.MustCompile("invalid for parameter `|: parameter .* is invalid")},
	{"format", regexp.MustCompile(`(?i)invalid (ELF|module|section)|ELF (header|spec)|exec format|relocation|BTF`)},
}

// hardware are what an init function gives where what it drives is not there.
var hardware = []syscall.Errno{unix.ENODEV, unix.ENXIO, unix.EOPNOTSUPP, unix.ENOSYS}

// refusal says who has refused a module, and why.
func refusal(s *step) (Verdict, string) {
	errno := errnoOf(errorText(s.text))
	if errno == unix.EKEYREJECTED || errno == unix.ENOKEY || errno == unix.EBADMSG {
		return Rejected, "signature"
	}
	for _, l := range loaderTexts {
		for _, line := range s.kernel {
			if l.reason == "format" && errno != unix.ENOEXEC && errno != unix.EINVAL {
				continue
			}
			if l.text.MatchString(line) {
				return Rejected, l.reason
			}
		}
	}
	switch {
	case errno == unix.ENOEXEC:
		return Rejected, "format"
	case slices.Contains(hardware, errno):
		return Refused, errnoName(errno)
	case errno != 0:
		return Failed, errnoName(errno)
	}
	return Failed, fmt.Sprintf("status %d: %s", s.status, strings.Join(s.text, " "))
}

// errorText is what busybox's insmod or rmmod says of an error, behind the last
// colon.
func errorText(text []string) string {
	s := strings.Join(text, " ")
	return strings.TrimSpace(s[strings.LastIndexByte(s, ':')+1:])
}

// busyboxTexts are errors for which busybox's insmod has words of its own
// (modutils/modutils.c).
var busyboxTexts = map[string]syscall.Errno{
	"invalid module format":                          unix.ENOEXEC,
	"unknown symbol in module, or unknown parameter": unix.ENOENT,
	"unknown symbol in module or invalid parameter":  unix.ENOENT,
	"module has wrong symbol version":                unix.ESRCH,
	"kernel does not support requested operation":    unix.ENOSYS,
	"invalid parameters":                             unix.EINVAL,
	"Operation not supported":                        unix.EOPNOTSUPP,
	"Unknown error 524":                              unix.EOPNOTSUPP, // the kernel's own ENOTSUPP
}

// errnoOf finds an error by its text; 0 if it is none.
func errnoOf(text string) syscall.Errno {
	if e, ok := busyboxTexts[text]; ok {
		return e
	}
	for e := syscall.Errno(1); e < 134; e++ {
		if strings.EqualFold(e.Error(), text) {
			return e
		}
	}
	return 0
}

// errnoName is the name of an error: of two for one number the one that kernels
// use.
func errnoName(e syscall.Errno) string {
	switch e {
	case unix.EOPNOTSUPP:
		return "EOPNOTSUPP"
	case unix.EAGAIN:
		return "EAGAIN"
	}
	return unix.ErrnoName(e)
}

// crash is how a boot ended in the middle of a unit.
type crash struct {
	at       step // in which it ended, or behind which
	verdict  Verdict
	reason   string
	messages []string
}

// faults are how a console tells of the end, the surest first.
var faults = []symptom{
	{"lockup", regexp.MustCompile(`soft lockup|hard LOCKUP|(?i)hung_task: blocked|rcu.*detected stalls`)},
	{"oops", regexp.MustCompile(`Oops|kernel BUG at|BUG: |general protection fault|Unable to handle kernel|divide error:|invalid opcode:|stack segment:|double fault:`)},
	{"panic", regexp.MustCompile(`Kernel panic`)},
}

// crashOf reads the end of a boot from its console, from an offset on.
func crashOf(end ending, console string) *crash {
	lines := messages(console)
	switch end {
	case silent, late:
		return &crash{verdict: Hung, reason: "timeout", messages: cut(lines)}
	case strayed:
		return &crash{verdict: Crashed, reason: "report", messages: cut(lines)}
	}
	for _, f := range faults {
		if slices.ContainsFunc(lines, f.text.MatchString) {
			first := slices.IndexFunc(lines, func(l string) bool {
				return slices.ContainsFunc(faults, func(f symptom) bool { return f.text.MatchString(l) })
			})
			return &crash{verdict: Crashed, reason: f.reason, messages: cut(lines[first:])}
		}
	}
	return &crash{verdict: Crashed, reason: "reset", messages: cut(lines)}
}

func messages(console string) []string {
	var lines []string
	for line := range strings.Lines(console) {
		if line = message(strings.TrimRight(line, "\r\n")); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// cut keeps what a report has room for: the first lines.
func cut(lines []string) []string {
	out := shorten(lines[:min(len(lines), maxMessages)])
	if n := len(lines) - len(out); n > 0 {
		out = append(out, fmt.Sprintf("… %d more lines", n))
	}
	return out
}

// cutFront keeps the last lines.
func cutFront(lines []string) []string {
	out := shorten(lines[max(0, len(lines)-maxMessages):])
	if n := len(lines) - len(out); n > 0 {
		out = slices.Insert(out, 0, fmt.Sprintf("… %d lines before", n))
	}
	return out
}

func shorten(lines []string) []string {
	out := slices.Clone(lines)
	for i, l := range out {
		if len(l) > maxMessage {
			out[i] = strings.ToValidUTF8(l[:maxMessage], "") + "…"
		}
	}
	return out
}
