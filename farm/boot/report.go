package boot

import (
	"errors"
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
	lines, bytes  int      // of the report
}

// unitRun is what became of a unit in a boot.
type unitRun struct {
	steps []step
	needs []string // "NAME: TEXT" of the kernel's own modules that did not load
}

// bootRun is what a boot has reported, as far as its plan expects it.
type bootRun struct {
	plan    plan   // what is still to come; the first call may have begun
	tag     string // of init.sh's own lines
	shared  bool   // several units are planned
	release string
	taint   uint64    // of the kernel, before all
	units   []unitRun // those that were begun
	stuck   bool      // the last one cannot be unloaded; what comes after was not begun
	faulty  bool      // the last one has left the kernel with a fault; it was not carried on
	bye     bool
	stray   string // the line that the plan did not expect
}

func newRun(p plan, tag string) *bootRun {
	units := 0
	for _, c := range p {
		if c[0] == "unit" {
			units++
		}
	}
	return &bootRun{plan: p, tag: tag, shared: units > 1}
}

// reply is what the plan makes of a line.
type reply int

const (
	noted  reply = iota // it belongs to a step, or is noise before the first
	onward              // the next thing that the plan expects
	last                // nothing comes after it
	astray              // the plan does not expect it: somebody else has written it
)

// Most that a step may report: of each of three kinds what init.sh lets through.
const (
	maxStepLines = 3*1000 + 1
	maxStepBytes = 256 << 10
)

// line takes a line of a report.
func (b *bootRun) line(line string, console int) reply {
	own, tagged := strings.CutPrefix(line, b.tag+" ")
	greeted := b.release != ""
	if !greeted && !tagged {
		return noted
	}
	r := astray
	switch s := b.open(); {
	case !tagged && s != nil && s.add(line):
		return noted
	case tagged && s != nil:
		if f, ok := strings.CutPrefix(own, "end "); ok && s.end(strings.Fields(f)) {
			if r = b.proceed(); b.shared && (s.after&^b.taint)&taintFaults != 0 {
				b.faulty, r = true, last
			}
		}
	case tagged && len(b.plan) > 0:
		r = b.next(own, console)
	}
	if r == astray {
		b.stray = line
	}
	return r
}

// open is the step that has begun and not ended, or nil.
func (b *bootRun) open() *step {
	if len(b.units) == 0 {
		return nil
	}
	steps := b.units[len(b.units)-1].steps
	if len(steps) == 0 || steps[len(steps)-1].done {
		return nil
	}
	return &steps[len(steps)-1]
}

// where gives the step that a boot has got to. One that loads a module of the
// kernel's own is on the way to the module that needs it.
func (b *bootRun) where() step {
	var s step
	if n := len(b.units); n > 0 && len(b.units[n-1].steps) > 0 {
		steps := b.units[n-1].steps
		s = steps[len(steps)-1]
	} else if n == 0 {
		return s
	}
	if s.kind == "" || s.done && b.plan[0][0] == "need" {
		if i := slices.IndexFunc(b.plan, func(c call) bool { return c[0] == "load" }); i >= 0 {
			return step{kind: "load", module: b.plan[i][1], console: s.console}
		}
	}
	return s
}

// crash says how a boot ended that did not end as planned. What ends a kernel is the
// only such thing on its console, which may have been read sooner than the report.
func (b *bootRun) crash(out outcome) *crash {
	if out.ending == complete {
		return nil
	}
	at := b.where()
	from := 0
	if out.ending != ended {
		from = min(max(0, at.console-(out.total-len(out.console))), len(out.console))
	}
	c := crashOf(out.ending, out.console[from:])
	c.at = at
	if out.ending == strayed {
		c.messages = append(cut([]string{"kofarm: not a line of the report: " + clean(b.stray)}), c.messages...)
	}
	return c
}

// proceed goes on to the next call.
func (b *bootRun) proceed() reply {
	b.plan = b.plan[1:]
	return onward
}

// next takes the line that reports the next call, or its beginning.
func (b *bootRun) next(line string, console int) reply {
	c := b.plan[0]
	kind, rest, _ := strings.Cut(line, " ")
	name, more, _ := strings.Cut(rest, " ")
	switch {
	case kind == "begin" && c.begins(name, more):
		u := &b.units[len(b.units)-1]
		u.steps = append(u.steps, step{kind: name, module: more, console: console})
		return onward
	case kind == "skip" && c.skips(rest):
		return b.proceed()
	case kind == "stuck" && c[0] == "unit":
		b.stuck = true
		return last
	case kind != c[0] || len(c) > 1 && name != c[1]:
		return astray
	}
	switch kind {
	case "hello":
		taint, err := strconv.ParseUint(more, 10, 64)
		if err != nil {
			return astray
		}
		b.release, b.taint = name, taint
	case "unit":
		b.units = append(b.units, unitRun{})
	case "need":
		status, text, _ := strings.Cut(more, " ")
		if status != "0" {
			b.units[len(b.units)-1].need(name, clean(text))
		}
	case "bye":
		b.bye = true
		return last
	default: // a step, which has to begin
		return astray
	}
	return b.proceed()
}

// add takes a line that belongs to a step, and says whether it does.
func (s *step) add(line string) bool {
	s.lines, s.bytes = s.lines+1, s.bytes+len(line)
	if s.lines > maxStepLines || s.bytes > maxStepBytes {
		return false
	}
	kind, rest, _ := strings.Cut(line, " ")
	switch kind {
	case "request":
		s.requests = append(s.requests, clean(rest))
	case "text":
		s.text = append(s.text, clean(rest))
	case "kernel":
		s.kernel = append(s.kernel, message(rest))
	default:
		return line == ""
	}
	return true
}

// need notes a module of the kernel's own that does not load; but not one for
// hardware that is not there, as those for a processor's instructions.
func (u *unitRun) need(name, text string) {
	why := errorText([]string{text})
	if !slices.Contains(hardware, errnoOf(why)) {
		u.needs = append(u.needs, name+": "+why)
	}
}

// end reads STATUS STATE TAINT-BEFORE TAINT-AFTER TAINT-OF-MODULE, and says
// whether that is what it is.
func (s *step) end(f []string) bool {
	if len(f) != 5 {
		return false
	}
	var errs [3]error
	s.status, errs[0] = strconv.Atoi(f[0])
	s.before, errs[1] = strconv.ParseUint(f[2], 10, 64)
	s.after, errs[2] = strconv.ParseUint(f[3], 10, 64)
	s.state, s.flags = f[1], f[4]
	s.done = errors.Join(errs[:]...) == nil
	return s.done
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

// asks says whether the kernel has asked for modules on the unit's behalf.
func (u *unitRun) asks() bool {
	return slices.ContainsFunc(u.steps, func(s step) bool { return len(s.requests) > 0 })
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
