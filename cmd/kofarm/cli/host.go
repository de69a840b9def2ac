package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kofarm/kofarm/farm"
	"github.com/kofarm/kofarm/farm/boot"
	"github.com/kofarm/kofarm/farm/report"
	"github.com/kofarm/kofarm/images/registry"
	"github.com/kofarm/kofarm/matrix"
)

// hostChecks looks at what the kernel says of itself below the root.
func hostChecks(root fs.FS, isRoot bool) []check {
	h := host{root, isRoot}
	return []check{h.userNamespaces(), h.overlay(), h.cgroups(), h.seccomp(), h.memory()}
}

// bootChecks says what boots kernels for tests. It need not be there where no farm
// file asks for it.
func bootChecks(hosts []boot.Host, wanted bool) []check {
	var checks []check
	for _, h := range hosts {
		c := check{Name: "test on " + h.Arch, Status: good, Detail: h.Version + ", which emulates"}
		switch {
		case h.Err != nil:
			c.Status, c.Detail = absent, h.Program+": "+h.Err.Error()
			if errors.Is(h.Err, exec.ErrNotFound) {
				c.Detail = h.Program + " is not installed"
			}
			c.Remedy = "to boot kernels for " + h.Arch + ": apt install " + h.Package
			if wanted {
				c.Status = warning
			}
		case h.KVM:
			c.Detail = h.Version + "; KVM is there, and is used where kernels boot with it"
		}
		checks = append(checks, c)
	}
	return checks
}

// host is a root file system with /proc and /sys.
type host struct {
	fs     fs.FS
	isRoot bool
}

// read gives a file's content, trimmed; "" where there is none.
func (h host) read(name string) string {
	data, err := fs.ReadFile(h.fs, name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// others is the status of what only users other than root lack.
func (h host) others() status {
	if h.isRoot {
		return warning
	}
	return missing
}

// userNamespaces: every container of the embedded runtime is in one.
func (h host) userNamespaces() check {
	c := check{Name: "user namespaces", Status: good, Detail: "every user may make them"}
	switch {
	case h.read("proc/sys/user/max_user_namespaces") == "":
		c.Status, c.Detail = missing, "the kernel has none"
		c.Remedy = "boot a kernel with CONFIG_USER_NS, or use Docker or containerd"
	case h.read("proc/sys/user/max_user_namespaces") == "0":
		c.Status, c.Detail = missing, "user.max_user_namespaces is 0"
		c.Remedy = "sysctl user.max_user_namespaces=15000"
	case h.read("proc/sys/kernel/unprivileged_userns_clone") == "0":
		c.Status, c.Detail = h.others(), "only root may make them"
		c.Remedy = "sysctl kernel.unprivileged_userns_clone=1"
	case h.read("proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
		c.Status, c.Detail = h.others(), "AppArmor keeps users other than root from using them"
		c.Remedy = "an AppArmor profile for kofarm with `userns,`, or sysctl kernel.apparmor_restrict_unprivileged_userns=0"
	}
	return c
}

// overlay: from Linux 5.11 on overlayfs can be mounted in a user namespace.
func (h host) overlay() check {
	release := h.read("proc/sys/kernel/osrelease")
	c := check{Name: "overlayfs", Status: good, Detail: "Linux " + release}
	major, rest, _ := strings.Cut(release, ".")
	minor := rest
	if i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		minor = rest[:i]
	}
	x, xerr := strconv.Atoi(major)
	y, yerr := strconv.Atoi(minor)
	if xerr != nil || yerr != nil || x < 5 || x == 5 && y < 11 {
		c.Status = missing
		c.Detail += ": overlayfs needs 5.11 in a user namespace"
		c.Remedy = "boot a newer kernel, or use Docker or containerd"
	}
	return c
}

// cgroups limit a build as a whole. The embedded runtime makes them as root.
func (h host) cgroups() check {
	c := check{Name: "cgroups", Status: good}
	needed := []string{"memory", "pids"}
	var have []string
	if v2, err := fs.ReadFile(h.fs, "sys/fs/cgroup/cgroup.controllers"); err == nil {
		c.Detail, have = "version 2", strings.Fields(string(v2))
	} else {
		c.Detail = "version 1"
		for _, n := range needed {
			if _, err := fs.Stat(h.fs, "sys/fs/cgroup/"+n); err == nil {
				have = append(have, n)
			}
		}
	}
	var lacking []string
	for _, n := range needed {
		if !slices.Contains(have, n) {
			lacking = append(lacking, n)
		}
	}
	switch {
	case len(lacking) > 0:
		c.Status = warning
		c.Detail += ", without " + strings.Join(lacking, " and ")
		c.Remedy = "mount them; in a container, run it with --cgroupns=host or privileged"
	case h.isRoot:
		c.Detail += ": memory and processes of each build are limited"
	default:
		c.Detail += "; the embedded runtime uses them as root only, other users' limits are rlimits"
	}
	return c
}

func (h host) seccomp() check {
	c := check{Name: "seccomp", Status: good, Detail: "the kernel filters system calls"}
	if h.read("proc/sys/kernel/seccomp/actions_avail") == "" {
		c.Status, c.Detail = missing, "the kernel cannot filter system calls"
		c.Remedy = "boot a kernel with CONFIG_SECCOMP_FILTER"
	}
	return c
}

// lowMemory is less than a build of one of the larger modules takes.
const lowMemory = 2 << 30

func (h host) memory() check {
	c := check{Name: "memory", Status: good}
	kib := int64(0)
	for line := range strings.Lines(h.read("proc/meminfo")) {
		if value, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			kib, _ = strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		}
	}
	c.Detail = report.Bytes(kib<<10) + " are available"
	if kib<<10 < lowMemory {
		c.Status, c.Remedy = warning, "build less at a time: build.parallel, and see limits.memory"
	}
	return c
}

// Disk space below which builds are likely to fail, or may.
const (
	tooLittleDisk = 1 << 30
	lowDisk       = 8 << 30
)

// diskSpace tells how much a store's file system has.
func diskSpace(dir string) (detail string, s status, remedy string) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Sprintf("%s: %v", dir, err), warning, ""
	}
	free := int64(st.Bavail) * st.Bsize
	detail = fmt.Sprintf("%s has %s free", dir, report.Bytes(free))
	const gc = "free some (`kofarm gc --max-size 10GiB`), or choose another folder with --store"
	switch {
	case free < tooLittleDisk:
		return detail, missing, gc
	case free < lowDisk:
		return detail, warning, gc
	case st.Files > 0 && st.Ffree < 200_000:
		return fmt.Sprintf("%s, but only %d more files", detail, st.Ffree), warning, gc
	}
	return detail, good, ""
}

// farmChecks looks at what a farm needs beside a host. Without a farm file there
// is Debian's keyring to look at.
func (a *app) farmChecks(ctx context.Context, f *matrix.Farm) []check {
	if f == nil {
		return []check{keyring("debian", matrix.DefaultKeyring)}
	}
	var checks []check
	dir := filepath.Dir(f.File)
	for _, name := range slices.Sorted(maps.Keys(f.Archives)) {
		archive := f.Archives[name]
		file := archive.Keyring
		if !filepath.IsAbs(file) {
			file = filepath.Join(dir, file)
		}
		checks = append(checks, keyring(name, file))
		if !a.offline {
			checks = append(checks, mirrors(ctx, name, slices.Concat(archive.Mirrors, archive.SecurityMirrors))...)
		}
	}
	if f.Cache.Registry != "" && !a.offline {
		checks = append(checks, a.cacheCheck(ctx, f.Cache))
	}
	return checks
}

func keyring(distribution, file string) check {
	c := check{Name: "keyring of " + distribution, Status: good, Detail: file}
	r, err := os.Open(file)
	if err == nil {
		err = r.Close()
	}
	if err != nil {
		c.Status, c.Detail = missing, err.Error()
		c.Remedy = "install debian-archive-keyring, or name another one: archives." + distribution + ".keyring"
	}
	return c
}

// askedTime bounds a question to a mirror or a registry.
const askedTime = 15 * time.Second

// mirrors asks each mirror for anything: an answer of any kind will do.
func mirrors(ctx context.Context, distribution string, urls []string) []check {
	var checks []check
	for _, u := range urls {
		c := check{Name: "mirror of " + distribution, Status: good, Detail: u}
		if err := answers(ctx, u); err != nil {
			c.Status, c.Detail = warning, err.Error()
			c.Remedy = "see the network and http_proxy, or name another one: archives." + distribution + ".mirrors"
		}
		checks = append(checks, c)
	}
	return checks
}

func answers(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, askedTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodHead, strings.TrimSuffix(url, "/")+"/dists/", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	err = resp.Body.Close()
	if resp.StatusCode >= http.StatusInternalServerError {
		err = errors.Join(err, fmt.Errorf("%s answers %s", url, resp.Status))
	}
	return err
}

// cacheCheck asks a shared cache for a result that it does not have.
func (a *app) cacheCheck(ctx context.Context, cfg matrix.Cache) check {
	ctx, cancel := context.WithTimeout(ctx, askedTime)
	defer cancel()
	c := check{Name: "shared cache", Status: good, Detail: fmt.Sprintf("%s lets us in; whether it takes results is not tried", cfg.Registry)}
	err := func() error {
		s, err := a.openStore()
		if err != nil {
			return err
		}
		defer s.Close()
		shared, err := registry.NewCache(s, farm.ResultRef, cfg.Registry, cfg.Insecure)
		if err != nil {
			return err
		}
		_, err = shared.Has(ctx, "none")
		return err
	}()
	if err != nil {
		c.Status, c.Detail = warning, err.Error()
		c.Remedy = "builds go on without it; see its address, `docker login`, and for plain HTTP cache.insecure"
	}
	return c
}
