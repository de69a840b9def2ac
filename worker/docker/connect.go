package docker

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/docker/client"
	"github.com/docker/go-connections/tlsconfig"
)

// TLS names files in PEM.
type TLS struct {
	CA        string // what the daemon's certificate is verified with; "": the system's
	Cert, Key string // this side's certificate
	// Use says that there is TLS, as all files may be "".
	Use bool
	// Unverified takes any certificate of the daemon's, as a Docker context may
	// say.
	Unverified bool
}

// endpoint is where a daemon answers.
type endpoint struct {
	host string // "": the usual socket
	tls  TLS
}

// connect makes a client. Nothing is sent yet.
func connect(cfg Config) (*client.Client, error) {
	e, err := cfg.endpoint()
	if err != nil {
		return nil, err
	}
	opts := []client.Opt{client.WithVersionFromEnv(), client.WithAPIVersionNegotiation()}
	if e.tls.Use && !strings.HasPrefix(e.host, "unix:") {
		transport, err := e.tls.transport()
		if err != nil {
			return nil, fmt.Errorf("TLS with %s: %w", e.host, err)
		}
		opts = append(opts, client.WithHTTPClient(&http.Client{Transport: transport, CheckRedirect: client.CheckRedirect}))
	}
	if e.host != "" {
		opts = append(opts, client.WithHost(e.host))
	}
	return client.NewClientWithOpts(opts...)
}

func (t TLS) transport() (*http.Transport, error) {
	config, err := tlsconfig.Client(tlsconfig.Options{CAFile: t.CA, CertFile: t.Cert, KeyFile: t.Key,
		ExclusiveRootPools: t.CA != "", InsecureSkipVerify: t.Unverified})
	if err != nil {
		return nil, err
	}
	return &http.Transport{TLSClientConfig: config}, nil
}

// Address gives the address of the daemon that Open would ask.
func (cfg Config) Address() (string, error) {
	e, err := cfg.endpoint()
	return cmp.Or(e.host, client.DefaultDockerHost), err
}

// endpoint finds the daemon in the order of the docker command.
func (cfg Config) endpoint() (endpoint, error) {
	host := cmp.Or(cfg.Host, os.Getenv(client.EnvOverrideHost))
	if host == "" {
		e, err := contextEndpoint(configDir())
		if err != nil || e.host != "" {
			return e, err
		}
	}
	if cfg.TLS.Use {
		return endpoint{host, cfg.TLS}, nil
	}
	if os.Getenv(client.EnvTLSVerify) == "" {
		return endpoint{host: host}, nil
	}
	return endpoint{host, certificates(cmp.Or(os.Getenv(client.EnvOverrideCertPath), configDir()))}, nil
}

// certificates names the files of a folder as Docker does.
func certificates(dir string) TLS {
	return TLS{Use: true, CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
}

// configDir is where the docker command has its configuration.
func configDir() string {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return dir
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".docker")
}

// contextEndpoint finds the daemon of the context in use, which is that of
// DOCKER_CONTEXT or of the configuration. The context "default" is none.
func contextEndpoint(dir string) (endpoint, error) {
	name := os.Getenv("DOCKER_CONTEXT")
	if name == "" {
		var config struct{ CurrentContext string }
		if err := readJSON(filepath.Join(dir, "config.json"), &config); err != nil {
			return endpoint{}, err
		}
		name = config.CurrentContext
	}
	if name == "" || name == "default" {
		return endpoint{}, nil
	}
	return readContext(dir, name)
}

// readContext reads a context as the docker command keeps it: in folders that
// are named for the digest of its name.
func readContext(dir, name string) (endpoint, error) {
	sum := sha256.Sum256([]byte(name))
	id := hex.EncodeToString(sum[:])
	var meta struct {
		Endpoints map[string]struct {
			Host          string
			SkipTLSVerify bool
		}
	}
	path := filepath.Join(dir, "contexts", "meta", id, "meta.json")
	if err := readJSON(path, &meta); err != nil {
		return endpoint{}, err
	}
	e := endpoint{host: meta.Endpoints["docker"].Host}
	switch {
	case e.host == "":
		return e, fmt.Errorf("the Docker context %q names no daemon: %s; `docker context ls` lists those that do", name, path)
	case strings.HasPrefix(e.host, "ssh:"):
		return e, fmt.Errorf("the Docker context %q is %s, and ssh is not spoken here: forward the socket and set DOCKER_HOST", name, e.host)
	}
	certs := certificates(filepath.Join(dir, "contexts", "tls", id, "docker"))
	for _, file := range []*string{&certs.CA, &certs.Cert, &certs.Key} {
		if _, err := os.Stat(*file); err != nil {
			*file = ""
		} else {
			e.tls.Use = true
		}
	}
	skip := meta.Endpoints["docker"].SkipTLSVerify
	if e.tls.Use || skip {
		certs.Use, certs.Unverified = true, skip
		e.tls = certs
	}
	return e, nil
}

// maxConfig bounds a configuration file in bytes.
const maxConfig = 4 << 20

// readJSON reads a file that need not be there.
func readJSON(path string, into any) error {
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && fi.Size() > maxConfig {
		err = fmt.Errorf("%d bytes are too many", fi.Size())
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(path)
	}
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		return fmt.Errorf("the Docker configuration %s: %w", path, err)
	}
	return nil
}
