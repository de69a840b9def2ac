package matrix

import (
	"errors"
	"regexp"
	"strings"

	"gopkg.in/yaml.v3"
)

// Cache is a registry that farms share their results in. The zero value is
// none.
type Cache struct {
	Registry string // host[:port]/repository, or "" for none
	Mode     CacheMode
	Insecure bool // plain HTTP will do
	Pos      Pos
}

// CacheMode says what a farm does with a shared cache.
type CacheMode string

// The modes.
const (
	CacheRead      CacheMode = "read"      // take results from it: the default
	CacheReadWrite CacheMode = "readwrite" // and put those that it lacks there
)

// registryRegexp is a host with a port and the path of a repository (OCI
// distribution-spec v1.1, "Pulling manifests").
var registryRegexp = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?` +
	`(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)+$`)

// maxRegistry is the longest name of a registry's repository in bytes.
const maxRegistry = 255

func checkRegistry(s string) error {
	switch {
	case isURL(s):
		return errors.New("want host/repository without http:// (insecure: true allows plain HTTP)")
	case len(s) > maxRegistry || !registryRegexp.MatchString(s):
		return errors.New("want host/repository, such as registry.example.org:5000/kofarm, without a tag")
	}
	return nil
}

func (d *decoder) cache(n *yaml.Node, c *Cache) {
	c.Pos, c.Mode = posOf(n), CacheRead
	given := d.mapping(n, "cache", fields{
		"registry": func(n *yaml.Node) { c.Registry = d.registry(n) },
		"mode": func(n *yaml.Node) {
			c.Mode = CacheMode(d.word(n, "mode", []string{string(CacheRead), string(CacheReadWrite)}))
		},
		"insecure": func(n *yaml.Node) { d.boolean(n, "insecure", &c.Insecure) },
	})
	if given != nil {
		d.required(n, given, "registry", "say where the cache is: host/repository")
	}
}

// registry reads the name of a repository. One with credentials in it is not
// repeated.
func (d *decoder) registry(n *yaml.Node) string {
	if n.Kind == yaml.ScalarNode && strings.Contains(n.Value, "@") {
		d.fail(posOf(n), "", "registry: want host/repository without a user or a digest",
			"credentials come from the Docker config: docker login")
		return ""
	}
	return d.str(n, "registry", checkRegistry).Text
}
