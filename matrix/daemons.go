package matrix

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// Daemon is where a Docker daemon or a containerd answers.
type Daemon struct {
	// Address is unix:///path, an absolute path for a containerd, or for Docker
	// also tcp://host:port.
	Address string
	TLS     *TLS // of a tcp address; nil: as the environment says
	Pos     Pos
}

// TLS names the files that TLS with a daemon takes, in PEM, relative to the
// farm file's folder.
type TLS struct {
	CA        string // what the daemon's certificate is verified with; "": the system's
	Cert, Key string // this side's certificate, or none of both
}

// maxDaemons bounds a list of daemons.
const maxDaemons = 64

// CheckDocker says whether s may be a Docker daemon's address.
func CheckDocker(s string) error {
	u, err := url.Parse(s)
	if err != nil {
		return errors.New("want unix:///path or tcp://host:port")
	}
	switch u.Scheme {
	case "unix":
		return checkSocket(strings.TrimPrefix(s, "unix://"))
	case "tcp":
		return checkTCP(u)
	case "ssh":
		return errors.New("ssh is not spoken here: forward the socket, `ssh -nNT -L /path/docker.sock:/var/run/docker.sock host`, and give unix:///path/docker.sock")
	}
	return errors.New("want unix:///path or tcp://host:port")
}

func checkTCP(u *url.URL) error {
	switch port, err := strconv.Atoi(u.Port()); {
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || (u.Path != "" && u.Path != "/"):
		return errors.New("want tcp://host:port and nothing else")
	case u.Hostname() == "":
		return errors.New("the host is missing: want tcp://host:port")
	case err != nil || port < 1 || port > 65535:
		return errors.New("the port is missing: want tcp://host:port, where 2376 is usual with TLS, 2375 without")
	}
	return nil
}

// CheckContainerd says whether s may be a containerd's address.
func CheckContainerd(s string) error {
	if isURL(s) && !strings.HasPrefix(s, "unix://") {
		return errors.New("want the path of a socket: containerd must be on this machine")
	}
	return checkSocket(strings.TrimPrefix(s, "unix://"))
}

func checkSocket(p string) error {
	if !path.IsAbs(p) || path.Clean(p) == "/" {
		return errors.New("want the absolute path of a socket: unix:///path")
	}
	return nil
}

// daemons reads one daemon or a list of them.
func (d *decoder) daemons(n *yaml.Node, what string, read func(*yaml.Node) (Word, *TLS)) []Daemon {
	nodes := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		nodes = n.Content
		switch {
		case len(nodes) == 0:
			d.fail(posOf(n), "", what+": the list is empty", "give at least one daemon or remove the key")
			return nil
		case len(nodes) > maxDaemons:
			d.fail(posOf(n), "", fmt.Sprintf("%s: a list of %d", what, len(nodes)), fmt.Sprintf("at most %d", maxDaemons))
			return nil
		}
	}
	var list []Daemon
	first := map[string]int{}
	for _, element := range nodes {
		w, tls := read(element)
		if w.Text != "" && d.unique(first, w, what) {
			list = append(list, Daemon{w.Text, tls, w.Pos})
		}
	}
	return list
}

// docker reads an address, or a mapping of one and of TLS.
func (d *decoder) docker(n *yaml.Node) (host Word, tls *TLS) {
	if n.Kind != yaml.MappingNode {
		return d.str(n, "docker", CheckDocker), nil
	}
	given := d.mapping(n, "docker", fields{
		"host": func(n *yaml.Node) { host = d.str(n, "host", CheckDocker) },
		"tls":  func(n *yaml.Node) { tls = d.tls(n) },
	})
	d.required(n, given, "host", "say where the daemon answers: tcp://host:2376")
	if tls != nil && strings.HasPrefix(host.Text, "unix:") {
		d.fail(posOf(given["tls"]), "", "tls: "+quote(host.Text)+" is a socket of this machine", "TLS is for tcp://host:port")
	}
	return host, tls
}

func (d *decoder) tls(n *yaml.Node) *TLS {
	var tls TLS
	given := d.mapping(n, "tls", fields{
		"ca":   func(n *yaml.Node) { tls.CA = d.str(n, "ca", checkPath).Text },
		"cert": func(n *yaml.Node) { tls.Cert = d.str(n, "cert", checkPath).Text },
		"key":  func(n *yaml.Node) { tls.Key = d.str(n, "key", checkPath).Text },
	})
	switch {
	case given == nil:
		return nil
	case given["cert"] != nil:
		d.required(n, given, "key", "a certificate is of no use without its key")
	case given["key"] != nil:
		d.required(n, given, "cert", "a key is of no use without its certificate")
	}
	return &tls
}

func (d *decoder) containerd(n *yaml.Node) (Word, *TLS) {
	return d.str(n, "containerd", CheckContainerd), nil
}

// runtime completes what a farm file says of its runtime: where it names the
// daemons of one kind only, that is the runtime.
func (d *decoder) runtime(n *yaml.Node, b *Build) {
	switch {
	case b.Runtime != "":
	case len(b.Docker) > 0 && len(b.Containerd) > 0:
		d.fail(posOf(n), "", "build: there are daemons for docker and for containerd", "add runtime: docker, containerd or auto")
	case len(b.Docker) > 0:
		b.Runtime = Docker
	case len(b.Containerd) > 0:
		b.Runtime = Containerd
	}
}
