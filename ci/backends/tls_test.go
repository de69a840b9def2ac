package backends_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kofarm/kofarm/ci/rig"
)

const tlsFarm = `
modules:
  - source: {deb: acpi-call-dkms, suite: bookworm}
kernels:
  - suite: bookworm
    releases: [{latest: 1, of: "6.1.*"}]
    flavors: [cloud-amd64]
`

// authority signs certificates in a folder of its own.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, dir string) *authority {
	t.Helper()
	a := &authority{dir: dir}
	a.cert, a.key = a.issue(t, "ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// issue writes name.pem and name-key.pem. The first is signed by itself.
func (a *authority) issue(t *testing.T, name string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber, c.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	rig.Write(t, a.dir, name+".pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	rig.Write(t, a.dir, name+"-key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private})))
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// freeAddress gives an address of this machine that does not look like one of
// this machine, and whose port was free just now.
func freeAddress(t *testing.T) *net.TCPAddr {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok || n.IP.To4() == nil || !n.IP.IsGlobalUnicast() {
			continue
		}
		l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: n.IP})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().(*net.TCPAddr)
	}
	t.Fatal("this test needs a network interface beside lo")
	return nil
}

// TestTLS builds on a daemon that wants certificates, with those of the farm
// file and of the environment, and with others. The daemon is one of another
// machine, for all that kofarm knows: that a disk is full is seen from inside.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	address := freeAddress(t)
	pki := newAuthority(t, filepath.Join(dir, "pki"))
	pki.issue(t, "server", &x509.Certificate{IPAddresses: []net.IP{address.IP}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	pki.issue(t, "client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	other := newAuthority(t, filepath.Join(dir, "other"))
	other.issue(t, "client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	host := "tcp://" + address.String()
	own(t, "docker", "a", "--host", host, "--tlsverify", "--tlscacert", filepath.Join(pki.dir, "ca.pem"),
		"--tlscert", filepath.Join(pki.dir, "server.pem"), "--tlskey", filepath.Join(pki.dir, "server-key.pem"))
	store := filepath.Join(dir, "store")
	rig.Clone(t, rig.Store(t), store, "blobs", "cache", "refs/layer")
	tests := []struct {
		name, build string
		code        int
		want        string
	}{
		{"the farm file's", "{host: %q, tls: {ca: pki/ca.pem, cert: pki/client.pem, key: pki/client-key.pem}}", 0, "1 built"},
		{"no TLS", "%q", 3, "HTTPS"},
		{"no certificate", "{host: %q, tls: {ca: pki/ca.pem}}", 3, "certificate"},
		{"a certificate of others", "{host: %q, tls: {ca: pki/ca.pem, cert: other/client.pem, key: other/client-key.pem}}", 3, "certificate"},
		{"a daemon of others", "{host: %q, tls: {ca: other/ca.pem, cert: pki/client.pem, key: pki/client-key.pem}}", 3, "unknown authority"},
		{"no such file", "{host: %q, tls: {ca: pki/none.pem}}", 3, "pki/none.pem"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rig.Write(t, dir, "farm.yaml", tlsFarm+"build: {retries: 0, docker: "+fmt.Sprintf(tt.build, host)+"}\n")
			if err := os.RemoveAll(filepath.Join(store, "refs/result")); err != nil {
				t.Fatal(err)
			}
			r := rig.Kofarm(t, tt.code, dir, store, "build")
			if !strings.Contains(r.Stdout+r.Stderr, tt.want) {
				t.Errorf("want %q in\n%s%s", tt.want, r.Stdout, r.Stderr)
			}
			doctor := rig.Kofarm(t, tt.code, dir, store, "doctor", "--runtime", "docker")
			if !strings.Contains(doctor.Stdout, "docker "+host) {
				t.Errorf("doctor does not name the daemon\n%s", doctor.Stdout)
			}
		})
	}
	t.Run("a full disk", func(t *testing.T) {
		rig.Write(t, dir, "filler/dkms.conf", "PACKAGE_NAME=filler\nPACKAGE_VERSION=1\nBUILT_MODULE_NAME=filler\nDEST_MODULE_LOCATION=/updates\nMAKE=\"dd if=/dev/zero of=fill\"\n")
		rig.Write(t, dir, "filler/filler.c", "")
		rig.Write(t, dir, "farm.yaml", strings.Replace(tlsFarm, "{deb: acpi-call-dkms, suite: bookworm}", "{dir: filler}", 1)+
			"limits: {disk: 32MiB}\nbuild: {docker: "+fmt.Sprintf(tests[0].build, host)+"}\n")
		r := rig.Kofarm(t, 1, dir, store, "build")
		if !strings.Contains(r.Stderr, "limits.disk") {
			t.Errorf("it does not say that the disk was full\n%s", r.Stderr)
		}
	})
	t.Run("the environment's", func(t *testing.T) {
		certs := filepath.Join(dir, "certs")
		for name, from := range map[string]string{"ca.pem": "ca.pem", "cert.pem": "client.pem", "key.pem": "client-key.pem"} {
			data, err := os.ReadFile(filepath.Join(pki.dir, from))
			if err != nil {
				t.Fatal(err)
			}
			rig.Write(t, certs, name, string(data))
		}
		t.Setenv("DOCKER_TLS_VERIFY", "1")
		t.Setenv("DOCKER_CERT_PATH", certs)
		rig.Write(t, dir, "farm.yaml", tlsFarm)
		if err := os.RemoveAll(filepath.Join(store, "refs/result")); err != nil {
			t.Fatal(err)
		}
		rig.Kofarm(t, 0, dir, store, "build", "--docker", host)
	})
}
