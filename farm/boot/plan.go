package boot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"
)

// plan is what init.sh carries out: its functions, one after the other.
type plan []call

// call is a function of init.sh and its arguments, the first of which names what
// it is about.
type call []string

// planOf lists the calls for units whose steps have a time limit.
func planOf(units []*loading, timeout time.Duration) plan {
	p := plan{{"hello"}}
	for i, u := range units {
		p = append(p, call{"unit", fmt.Sprint(i)})
		for _, name := range u.order {
			if m, ok := u.files[name]; ok {
				p = append(p, append(call{"load", name, fmt.Sprintf("/unit/%d/%s.ko", i, name)}, m.Parameters...))
			} else {
				p = append(p, call{"need", name, "/own/" + name + ".ko"})
			}
		}
		if u.Script != nil {
			seconds := max(1, int(timeout.Seconds()*0.9))
			p = append(p, append(call{"script", fmt.Sprintf("/unit/%d/script", i), fmt.Sprint(seconds)}, u.names...))
		}
		for _, name := range slices.Backward(u.names) {
			p = append(p, call{"unload", name})
		}
	}
	return append(p, call{"bye"})
}

// text is the plan as a shell reads it.
func (p plan) text(port, tag string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "port=/dev/%s tag=%s\n", port, tag)
	for _, c := range p {
		for i, word := range c {
			if i > 0 {
				b.WriteByte(' ')
				word = quote(word)
			}
			b.WriteString(word)
		}
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// quote makes one word of the shell's.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// tagOf gives the word that marks init.sh's own lines of a report. All that is
// booted makes it, so no module has it in itself; a module that looks for it in
// memory finds it, though.
func tagOf(p plan, units []*loading) string {
	h := sha256.New()
	fmt.Fprintf(h, "kofarm report\n%q\n", p)
	for _, u := range units {
		for _, m := range u.Modules {
			fmt.Fprintf(h, "%s\n", m.SHA256)
		}
		fmt.Fprintf(h, "%q\n", u.Script)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// begins says whether the call is the step of that kind with that module.
func (c call) begins(kind, module string) bool {
	switch kind {
	case "load", "unload":
		return c[0] == kind && c[1] == module
	case "script":
		return c[0] == kind && slices.Contains(c[3:], module)
	}
	return false
}

// skips says whether the call may find nothing to do.
func (c call) skips(kind string) bool {
	return c[0] == kind && (kind == "script" || kind == "unload")
}
