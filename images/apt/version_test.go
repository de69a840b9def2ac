package apt

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
)

// oracleVersions are joined in pairs, each against each.
var oracleVersions = []string{
	"0", "00", "0-0", "1", "1.0", "1.00", "1.0-0", "1.0-1", "1.0-01", "1.0-1.1", "1.0-10", "1.0~rc1-1", "1.0~~", "1.0~", "1.0~a",
	"1.0a", "1.0+", "1.0+b1", "1.0.", "1.0-1+b1", "1.0-1~bpo12+1", "1:0.1", "0:1.0", "2:0", "1.0-1-1", "6.1.170-1", "6.1.170-3",
	"6.12.94-1~bpo12+1", "5.10.0-39", "7.0.4-1", "12.2.0-14+deb12u1", "9999999999999999999999", "99999999999999999999990",
}

// dpkgCompare asks dpkg for the sign of the comparison.
func dpkgCompare(t testing.TB, a, b string) int {
	t.Helper()
	for _, try := range []struct {
		op   string
		sign int
	}{{"lt", -1}, {"eq", 0}, {"gt", 1}} {
		err := exec.Command("dpkg", "--compare-versions", a, try.op, b).Run()
		if err == nil {
			return try.sign
		}
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 {
			t.Fatalf("dpkg --compare-versions %s %s %s: %v", a, try.op, b, err)
		}
	}
	t.Fatalf("dpkg finds %q neither older, equal nor newer than %q", a, b)
	return 0
}

func TestCompareVersionsAgainstDpkg(t *testing.T) {
	// One shell for all pairs: a thousand starts of dpkg take a second, of dpkg and fork in Go five.
	var script strings.Builder
	var pairs [][2]string
	for _, a := range oracleVersions {
		for _, b := range oracleVersions {
			pairs = append(pairs, [2]string{a, b})
		}
	}
	for _, p := range pairs {
		fmt.Fprintf(&script, "if dpkg --compare-versions '%[1]s' lt '%[2]s'; then echo -1; elif dpkg --compare-versions '%[1]s' eq '%[2]s'; then echo 0; else echo 1; fi\n", p[0], p[1])
	}
	cmd := exec.Command("sh", "-e")
	cmd.Stdin = strings.NewReader(script.String())
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(string(out))
	if len(lines) != len(pairs) {
		t.Fatalf("got %d answers for %d pairs", len(lines), len(pairs))
	}
	for i, p := range pairs {
		if got := fmt.Sprint(CompareVersions(p[0], p[1])); got != lines[i] {
			t.Errorf("%s against %s: got %s, dpkg says %s", p[0], p[1], got, lines[i])
		}
	}
}

func TestCompareIsAnOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	pick := func() string { return oracleVersions[r.IntN(len(oracleVersions))] }
	for range 20_000 {
		a, b, c := pick(), pick(), pick()
		if CompareVersions(a, b) != -CompareVersions(b, a) {
			t.Fatalf("%s and %s are not antisymmetric", a, b)
		}
		if CompareVersions(a, b) <= 0 && CompareVersions(b, c) <= 0 && CompareVersions(a, c) > 0 {
			t.Fatalf("%s, %s, %s are not transitive", a, b, c)
		}
	}
}

func TestCheckVersion(t *testing.T) {
	for _, v := range oracleVersions {
		if err := CheckVersion(v); err != nil {
			t.Errorf("%s: %v", v, err)
		}
	}
	for _, v := range []string{"", "-1", ":1", "a:1", "1-", "v1", "1_0", "1 0", "1-1_2", "1/2", "4294967296:1", strings.Repeat("1", 600)} {
		if CheckVersion(v) == nil {
			t.Errorf("%q: no error", v)
		}
	}
}

func FuzzCompareVersions(f *testing.F) {
	for i, v := range oracleVersions {
		f.Add(v, oracleVersions[len(oracleVersions)-1-i])
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		got := CompareVersions(a, b)
		if got != -CompareVersions(b, a) {
			t.Errorf("%q and %q are not antisymmetric", a, b)
		}
		if CheckVersion(a) != nil || CheckVersion(b) != nil {
			return
		}
		if want := dpkgCompare(t, a, b); got != want {
			t.Errorf("%q against %q: got %d, dpkg says %d", a, b, got, want)
		}
	})
}
