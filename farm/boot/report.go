package boot

import (
	"slices"
	"strconv"
	"strings"
)

// step is one thing that init.sh has done, or has begun to.
type step struct {
	kind, module  string // load, script or unload
	done          bool
	status        int
	state         string // of the module, as /proc/modules has it; "-": not there
	before, after uint64 // how the kernel was tainted
	flags         string // how the module taints it
	text, kernel  []string
	requests      []string // modules and aliases that the kernel has asked for
	console       int      // bytes of the console until then
}

// unitRun is what became of a unit in a boot.
type unitRun struct {
	steps []step
	needs []string // "NAME: TEXT" of the kernel's own modules that did not load
}

// bootRun is what a boot has reported.
type bootRun struct {
	release string
	units   []unitRun // those that were begun
	stuck   bool      // the last one cannot be unloaded; what comes after was not begun
	bye     bool
}

// line takes a line of a report, and says whether it was the last.
func (b *bootRun) line(line string, console int) (last bool) {
	kind, rest, _ := strings.Cut(line, " ")
	switch kind {
	case "hello":
		b.release = rest
	case "unit":
		if rest == strconv.Itoa(len(b.units)) {
			b.units = append(b.units, unitRun{})
		}
	case "stuck":
		b.stuck = true
		return true
	case "bye":
		b.bye = true
		return true
	default:
		if len(b.units) > 0 {
			b.units[len(b.units)-1].line(kind, rest, console)
		}
	}
	return false
}

func (u *unitRun) line(kind, rest string, console int) {
	if kind == "need" {
		if f := strings.SplitN(rest, " ", 3); len(f) == 3 && f[1] != "0" {
			u.need(f[0], clean(f[2]))
		}
		return
	}
	if kind == "begin" {
		what, module, _ := strings.Cut(rest, " ")
		u.steps = append(u.steps, step{kind: what, module: module, console: console})
		return
	}
	if len(u.steps) == 0 || u.steps[len(u.steps)-1].done {
		return
	}
	s := &u.steps[len(u.steps)-1]
	switch kind {
	case "request":
		s.requests = append(s.requests, clean(rest))
	case "text":
		s.text = append(s.text, clean(rest))
	case "kernel":
		s.kernel = append(s.kernel, message(rest))
	case "end":
		s.end(strings.Fields(rest))
	}
}

// need notes a module of the kernel's own that does not load; but not one for
// hardware that is not there, as those for a processor's instructions.
func (u *unitRun) need(name, text string) {
	why := errorText([]string{text})
	if !slices.Contains(hardware, errnoOf(why)) {
		u.needs = append(u.needs, name+": "+why)
	}
}

// end reads STATUS STATE TAINT-BEFORE TAINT-AFTER TAINT-OF-MODULE.
func (s *step) end(f []string) {
	if len(f) != 5 {
		return
	}
	var errs [3]error
	s.status, errs[0] = strconv.Atoi(f[0])
	s.before, errs[1] = strconv.ParseUint(f[2], 10, 64)
	s.after, errs[2] = strconv.ParseUint(f[3], 10, 64)
	s.state, s.flags = f[1], f[4]
	s.done = !slices.ContainsFunc(errs[:], func(err error) bool { return err != nil })
}

// find gives a step of a module, or nil.
func (u *unitRun) find(kind, module string) *step {
	for i := range u.steps {
		if s := &u.steps[i]; s.kind == kind && (module == "" || s.module == module) {
			return s
		}
	}
	return nil
}

// message is a line of the kernel's without level and time.
func message(line string) string {
	line = strings.TrimLeft(clean(line), " ")
	if strings.HasPrefix(line, "<") {
		if i := strings.IndexByte(line, '>'); i > 0 && i <= 4 {
			line = line[i+1:]
		}
	}
	if strings.HasPrefix(line, "[") {
		if i := strings.IndexByte(line, ']'); i > 0 {
			if _, err := strconv.ParseFloat(strings.TrimSpace(line[1:i]), 64); err == nil {
				line = strings.TrimPrefix(line[i+1:], " ")
			}
		}
	}
	return line
}

// clean drops what a terminal would act on.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}
