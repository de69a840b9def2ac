package cache_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/kofarm/kofarm/ci/rig"
	"github.com/kofarm/kofarm/farm"
)

// world is the network of a test: a namespace whose only way out is a link to
// this one, and here a proxy to Debian's mirrors.
type world struct {
	host   string   // this end's address
	within []string // a command that runs others in the namespace
	env    []string // the proxy

	mu   sync.Mutex
	urls []string
}

// newWorld makes the namespace, which the test's end removes; or the next one,
// where this process is killed.
func newWorld(t testing.TB) *world {
	t.Helper()
	rig.Lock(t, "cache-network")
	const ns, here, there = "kofarm-test", "kofarm-here", "kofarm-there"
	remove := func() error {
		_ = exec.Command("ip", "link", "del", here).Run() // gone with the namespace, unless that was not reached
		return exec.Command("ip", "netns", "del", ns).Run()
	}
	_ = remove() // mostly there is none
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %q (Debian's package iproute2, see ci/setup): %v\n%s", args, err, out)
		}
	}
	ip("netns", "add", ns)
	t.Cleanup(func() {
		if err := remove(); err != nil {
			t.Errorf("removing the network namespace %s: %v", ns, err)
		}
	})
	ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", ns)
	const host = "10.231.77.1"
	ip("addr", "add", host+"/30", "dev", here)
	ip("link", "set", here, "up")
	ip("-n", ns, "addr", "add", "10.231.77.2/30", "dev", there)
	ip("-n", ns, "link", "set", there, "up")
	w := &world{host: host, within: []string{"ip", "netns", "exec", ns}}
	l, err := net.Listen("tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	proxy := &http.Server{Handler: &httputil.ReverseProxy{Rewrite: w.note}}
	go func() { _ = proxy.Serve(l) }() // ends with Close
	t.Cleanup(func() { proxy.Close() })
	w.env = []string{"http_proxy=http://" + l.Addr().String(), "no_proxy=" + host, "DOCKER_CONFIG=" + t.TempDir()}
	return w
}

// note notes what the proxy is asked for, and lets it pass.
func (w *world) note(r *httputil.ProxyRequest) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.urls = append(w.urls, r.In.URL.String())
}

// fetched lists what was asked for and ends so, and forgets it.
func (w *world) fetched(suffix string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []string
	for _, u := range w.urls {
		if strings.HasSuffix(u, suffix) {
			list = append(list, u)
		}
	}
	w.urls = nil
	return list
}

// address gives an address that nobody listens at.
func (w *world) address(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", w.host+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// registryKind says how a registry lets clients in.
type registryKind string

const (
	plain      registryKind = "plain"
	basicAuth  registryKind = "basic auth"
	tlsAndAuth registryKind = "TLS and basic auth"
)

const password = "correct-horse-battery"

// dockerRegistry is Debian's docker-registry with a folder of its own.
type dockerRegistry struct {
	addr, data string
	env        []string // what its clients need
}

// registry starts one, and waits until it answers.
func (w *world) registry(t testing.TB, addr string, kind registryKind) *dockerRegistry {
	t.Helper()
	dir := t.TempDir()
	r := &dockerRegistry{addr: addr, data: filepath.Join(dir, "data")}
	scheme, client := "http", &http.Client{}
	config := fmt.Sprintf("version: 0.1\nlog: {level: warn}\nstorage:\n  filesystem: {rootdirectory: %s}\nhttp:\n  addr: %s\n  secret: test\n", r.data, addr)
	if kind == tlsAndAuth {
		cert, key := certificate(t, dir, w.host)
		config += fmt.Sprintf("  tls: {certificate: %s, key: %s}\n", cert, key)
		r.env = []string{"SSL_CERT_FILE=" + cert}
		pool := x509.NewCertPool()
		if data, err := os.ReadFile(cert); err != nil || !pool.AppendCertsFromPEM(data) {
			t.Fatal(err)
		}
		scheme, client.Transport = "https", &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	}
	if kind != plain {
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		file := rig.Write(t, dir, "htpasswd", fmt.Sprintf("ann:%s\n", hash))
		config += fmt.Sprintf("auth:\n  htpasswd: {realm: test, path: %s}\n", file)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", rig.Write(t, dir, "config.yml", config))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatalf("docker-registry (Debian's package of that name, see ci/setup): %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
	})
	for range 1200 {
		resp, err := client.Get(scheme + "://" + addr + "/v2/")
		if err == nil {
			resp.Body.Close()
			return r
		}
		time.Sleep(100 * time.Millisecond)
	}
	said, _ := os.ReadFile(log.Name())
	t.Fatalf("docker-registry does not answer:\n%s", said)
	return nil
}

// login makes a Docker config with credentials for the registry.
func (r *dockerRegistry) login(t testing.TB, user, password string) string {
	t.Helper()
	dir := t.TempDir()
	data, err := json.Marshal(map[string]any{"auths": map[string]any{r.addr: map[string]string{"username": user, "password": password}}})
	if err != nil {
		t.Fatal(err)
	}
	rig.Write(t, dir, "config.json", string(data))
	return dir
}

// damage changes a blob in the registry's folder.
func (r *dockerRegistry) damage(t testing.TB, sha256 string, change func([]byte) []byte) {
	t.Helper()
	file := filepath.Join(r.data, "docker/registry/v2/blobs/sha256", sha256[:2], sha256, "data")
	data, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, change(data), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// config asks for the digest of a result's record.
func (r *dockerRegistry) config(t testing.TB, key string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.addr+"/v2/team/kofarm/manifests/"+key, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var m struct{ Config struct{ Digest string } }
	data, err := io.ReadAll(resp.Body)
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err != nil || m.Config.Digest == "" {
		t.Fatalf("%v: %s", err, data)
	}
	return strings.TrimPrefix(m.Config.Digest, "sha256:")
}

// tags lists the repository's tags that begin so.
func (r *dockerRegistry) tags(t testing.TB, prefix string) []string {
	t.Helper()
	resp, err := http.Get("http://" + r.addr + "/v2/team/kofarm/tags/list")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var list struct{ Tags []string }
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(list.Tags, func(tag string) bool { return !strings.HasPrefix(tag, prefix) })
}

// forget removes the records of a report's cells from a machine's store, so that
// they have to be pulled.
func (r *dockerRegistry) forget(t testing.TB, m *machine, report *farm.Report) {
	t.Helper()
	for _, c := range report.Cells {
		file := filepath.Join(m.store, "blobs/sha256", r.config(t, c.Key))
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
}

// certificate makes a key and a certificate for an address, signed by itself.
func certificate(t testing.TB, dir, ip string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kofarm test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{net.ParseIP(ip)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return rig.Write(t, dir, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))),
		rig.Write(t, dir, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
}
