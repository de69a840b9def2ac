package docker

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// write writes a file below dir.
func write(t *testing.T, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestEndpoint finds the daemon as the docker command does. Contexts are as
// `docker context create` of Docker 28 writes them.
func TestEndpoint(t *testing.T) {
	dir := t.TempDir()
	folder := func(context string) string {
		sum := sha256.Sum256([]byte(context))
		return hex.EncodeToString(sum[:])
	}
	for name, meta := range map[string]string{
		"plain":    `{"Name":"plain","Metadata":{},"Endpoints":{"docker":{"Host":"unix:///run/plain.sock","SkipTLSVerify":false}}}`,
		"far":      `{"Name":"far","Metadata":{},"Endpoints":{"docker":{"Host":"tcp://far:2376","SkipTLSVerify":false}}}`,
		"careless": `{"Name":"careless","Endpoints":{"docker":{"Host":"tcp://far:2376","SkipTLSVerify":true}}}`,
		"ssh":      `{"Name":"ssh","Endpoints":{"docker":{"Host":"ssh://far"}}}`,
		"empty":    `{"Name":"empty","Endpoints":{}}`,
		"damaged":  `{`,
	} {
		write(t, dir, "contexts/meta/"+folder(name)+"/meta.json", meta)
	}
	tls := filepath.Join(dir, "contexts/tls", folder("far"), "docker")
	write(t, tls, "ca.pem", "")
	given := TLS{Use: true, CA: "a", Cert: "b", Key: "c"}
	for _, tt := range []struct {
		name   string
		cfg    Config
		env    map[string]string
		config string // config.json
		want   endpoint
		err    string
	}{
		{name: "nothing", want: endpoint{}},
		{name: "given", cfg: Config{Host: "tcp://a:1"}, env: map[string]string{"DOCKER_HOST": "tcp://b:1"}, want: endpoint{host: "tcp://a:1"}},
		{name: "given with TLS", cfg: Config{Host: "tcp://a:1", TLS: given}, env: map[string]string{"DOCKER_TLS_VERIFY": "1"}, want: endpoint{"tcp://a:1", given}},
		{name: "environment", env: map[string]string{"DOCKER_HOST": "tcp://b:1", "DOCKER_CONTEXT": "plain"}, want: endpoint{host: "tcp://b:1"}},
		{name: "environment with TLS", env: map[string]string{"DOCKER_HOST": "tcp://b:1", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/c"},
			want: endpoint{"tcp://b:1", TLS{Use: true, CA: "/c/ca.pem", Cert: "/c/cert.pem", Key: "/c/key.pem"}}},
		{name: "TLS of the usual folder", cfg: Config{Host: "tcp://a:1"}, env: map[string]string{"DOCKER_TLS_VERIFY": "1"},
			want: endpoint{"tcp://a:1", TLS{Use: true, CA: dir + "/ca.pem", Cert: dir + "/cert.pem", Key: dir + "/key.pem"}}},
		{name: "context in use", config: `{"auths":{},"currentContext":"plain"}`, want: endpoint{host: "unix:///run/plain.sock"}},
		{name: "context of the environment", env: map[string]string{"DOCKER_CONTEXT": "far"}, config: `{"currentContext":"plain"}`,
			want: endpoint{"tcp://far:2376", TLS{Use: true, CA: tls + "/ca.pem"}}},
		{name: "default context", env: map[string]string{"DOCKER_CONTEXT": "default"}, config: `{"currentContext":"plain"}`},
		{name: "unverified", env: map[string]string{"DOCKER_CONTEXT": "careless"}, want: endpoint{"tcp://far:2376", TLS{Use: true, Unverified: true}}},
		{name: "ssh", env: map[string]string{"DOCKER_CONTEXT": "ssh"}, err: "forward the socket"},
		{name: "no daemon", env: map[string]string{"DOCKER_CONTEXT": "empty"}, err: `"empty" names no daemon`},
		{name: "unknown", env: map[string]string{"DOCKER_CONTEXT": "unknown"}, err: `"unknown" names no daemon`},
		{name: "damaged", env: map[string]string{"DOCKER_CONTEXT": "damaged"}, err: "meta.json: unexpected end of JSON"},
		{name: "damaged configuration", config: "{", err: "config.json: unexpected end of JSON"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, v := range []string{"DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"} {
				t.Setenv(v, tt.env[v])
			}
			t.Setenv("DOCKER_CONFIG", dir)
			if tt.config == "" {
				tt.config = "{}"
			}
			write(t, dir, "config.json", tt.config)
			got, err := tt.cfg.endpoint()
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Errorf("got %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}

func TestLocal(t *testing.T) {
	for address, want := range map[string]bool{
		"unix:///run/docker.sock": true, "tcp://127.0.0.1:1": true, "tcp://[::1]:1": true, "tcp://localhost:1": true,
		"tcp://10.0.0.1:1": false, "tcp://builder:1": false, "ssh://localhost": false, "": false,
	} {
		if got := local(address); got != want {
			t.Errorf("%q: got %v, want %v", address, got, want)
		}
	}
}

func TestGroups(t *testing.T) {
	id := strings.Repeat("0a", 32)
	if got := groups(id); len(got) != 2 || got[0] != "docker/"+id {
		t.Errorf("got %q", got)
	}
	for _, id := range []string{"", "kofarm-x-1", "../..", id[1:], id + "0", id[:60] + "/../", strings.ToUpper(id), id + "\n"} {
		if got := groups(id); got != nil {
			t.Errorf("%q: got %q", id, got)
		}
	}
}
