package cli

import (
	"cmp"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kofarm/kofarm/farm"
)

// cellFlag adds --cell to a command that does something to cells.
func cellFlag(cmd *cobra.Command, selectors *[]string, do string) {
	cmd.Flags().StringArrayVar(selectors, "cell", nil,
		do+" only cells that fit `MODULE[/VERSION][@KERNEL[/ARCH]]`, each part perhaps with * and ?; again for more")
}

// chosen are the cells that fit one of the selectors; all, where there is none.
func chosen(cells []*farm.Cell, selectors []string) ([]*farm.Cell, error) {
	if len(selectors) == 0 {
		return cells, nil
	}
	var all []*farm.Cell
	for _, s := range selectors {
		n := 0
		for _, c := range cells {
			ok, err := fits(c, s)
			if err != nil {
				return nil, fmt.Errorf("--cell %q: %w", s, err)
			}
			if ok {
				n++
				if !slices.Contains(all, c) {
					all = append(all, c)
				}
			}
		}
		if n == 0 {
			return nil, fmt.Errorf("--cell %q fits no cell; `kofarm plan` lists them", s)
		}
	}
	return all, nil
}

func fits(c *farm.Cell, selector string) (bool, error) {
	module, kernel, _ := strings.Cut(selector, "@")
	name, version, _ := strings.Cut(module, "/")
	release, arch, _ := strings.Cut(kernel, "/")
	for _, p := range []struct{ pattern, value string }{{name, c.Module.Name}, {version, c.Module.Version}, {release, c.Kernel.Release}, {arch, c.Kernel.Arch}} {
		ok, err := path.Match(cmp.Or(p.pattern, "*"), p.value)
		if err != nil || !ok && p.pattern != "" {
			return false, err
		}
	}
	return true, nil
}

// rerun gives the command line that does to the cells of a selector what the given
// one does; "" stands for the cells of the given one. Flags that are only about
// what is printed are left out.
func rerun(cmd *cobra.Command, args []string) func(selector string) string {
	name := cmd.Name()
	if name == "package" {
		name = "build" // which has its flags, and mends what package only finds
	}
	return func(selector string) string {
		words := []string{"kofarm", name}
		cmd.Flags().Visit(func(f *pflag.Flag) {
			if slices.Contains([]string{"quiet", "json", "verbose"}, f.Name) || f.Name == "cell" && selector != "" {
				return
			}
			words = append(words, given(f)...)
		})
		if selector != "" {
			words = append(words, "--cell", selector)
		}
		words = append(words, args...)
		for i, w := range words {
			words[i] = quote(w)
		}
		return strings.Join(words, " ")
	}
}

// given are the words that set a flag.
func given(f *pflag.Flag) []string {
	if f.Value.Type() == "bool" {
		return []string{strings.TrimSuffix("--"+f.Name+"="+f.Value.String(), "=true")}
	}
	values := []string{f.Value.String()}
	if list, ok := f.Value.(pflag.SliceValue); ok {
		values = list.GetSlice()
	}
	var words []string
	for _, v := range values {
		words = append(words, "--"+f.Name, v)
	}
	return words
}

// plainWord are words that a shell takes as they are.
var plainWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./~-]+$`)

func quote(word string) string {
	if plainWord.MatchString(word) && word[0] != '~' {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
