package kmod

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"io"
	"math/big"
	"strings"
)

// Signature is the signature appended to a module. It is described, not
// verified: whether a kernel trusts the key is the kernel's business.
type Signature struct {
	// IDType is 0 (PGP), 1 (X.509) or 2 (PKCS#7, what kernels since 4.3 make).
	IDType byte
	// Signer is the common name of the certificate's issuer; empty where the
	// signature names its key by key id, or is not a well-formed PKCS#7.
	Signer string
	// KeyID is the certificate's serial number or the key id, as modinfo
	// prints it: upper-case hexadecimal with colons.
	KeyID string
	// Hash and Algorithm are names as sha256, rsa; an object identifier in
	// dotted form where the name is not known here; empty as Signer.
	Hash, Algorithm string
	// Raw is the signature as appended (for PKCS#7 its DER encoding).
	Raw []byte
}

// The trailer of a signed module: the signature, struct module_signature
// (include/linux/module_signature.h), the magic.
const (
	signatureMagic  = "~Module signature appended~\n"
	signatureHeader = 12
	idPKCS7         = 2
	// maxSignature bounds the signature in bytes. RSA-4096 with a
	// certificate takes about 2 KiB, ML-DSA 5 to 8.
	maxSignature = 64 << 10
)

// ReadSignature returns the signature at the end of a plain module of size
// bytes and the size without it; nil and size for an unsigned module. Of a
// module that was signed more than once it is the last, which is the one that a
// kernel looks at. Errors wrap [ErrFormat], [ErrLimit] or the reader's own.
func ReadSignature(r io.ReaderAt, size int64) (*Signature, int64, error) {
	s, size, err := readSignature(r, size)
	if err != nil {
		return nil, 0, fmt.Errorf("reading appended signature: %w", err)
	}
	return s, size, nil
}

// Trailer is what makes a signed module of one: to be written behind it. The
// signature is the DER encoding of a PKCS#7.
func Trailer(pkcs7 []byte) ([]byte, error) {
	if len(pkcs7) > maxSignature {
		return nil, fmt.Errorf("signature of %d bytes: %w of %d", len(pkcs7), ErrLimit, maxSignature)
	}
	t := append(make([]byte, 0, len(pkcs7)+signatureHeader+len(signatureMagic)), pkcs7...)
	t = append(t, 0, 0, idPKCS7, 0, 0, 0, 0, 0) // algorithm, hash, type, two lengths, padding: only the type is of use
	t = binary.BigEndian.AppendUint32(t, uint32(len(pkcs7)))
	return append(t, signatureMagic...), nil
}

func readSignature(r io.ReaderAt, size int64) (*Signature, int64, error) {
	const trailer = signatureHeader + int64(len(signatureMagic))
	if size < trailer {
		return nil, size, nil
	}
	var end [trailer]byte
	if _, err := r.ReadAt(end[:], size-trailer); err != nil && err != io.EOF {
		return nil, 0, err
	}
	if string(end[signatureHeader:]) != signatureMagic {
		return nil, size, nil
	}
	size -= trailer
	signer, keyID := int64(end[3]), int64(end[4])
	n := int64(binary.BigEndian.Uint32(end[8:signatureHeader]))
	if n > maxSignature {
		return nil, 0, fmt.Errorf("%d bytes: %w of %d", n, ErrLimit, maxSignature)
	}
	if total := n + signer + keyID; total > size {
		return nil, 0, formatErr("%d bytes in a file of %d", total, size)
	}
	raw := make([]byte, signer+keyID+n)
	size -= int64(len(raw))
	if _, err := r.ReadAt(raw, size); err != nil {
		return nil, 0, err
	}
	s := &Signature{IDType: end[2], Raw: raw[signer+keyID:]}
	if s.IDType == idPKCS7 {
		s.describe()
	} else {
		s.Signer = string(raw[:signer])
		s.KeyID = colons(raw[signer : signer+keyID])
		s.Algorithm = oldName(oldAlgorithms, end[0])
		s.Hash = oldName(oldHashes, end[1])
	}
	return s, size, nil
}

// Names of the numbers that a trailer before PKCS#7 holds (enum pkey_algo and
// enum hash_algo of kernels to 4.2).
var (
	oldAlgorithms = []string{"dsa", "rsa"}
	oldHashes     = []string{"md4", "md5", "sha1", "rmd160", "sha256", "sha384", "sha512", "sha224"}
)

func oldName(names []string, n byte) string {
	if int(n) < len(names) {
		return names[n]
	}
	return fmt.Sprintf("unknown (%d)", n)
}

// The part of CMS (RFC 5652) that says who signed with what.
type (
	contentInfo struct {
		Type    asn1.ObjectIdentifier
		Content signedData `asn1:"explicit,tag:0"`
	}
	signedData struct {
		Version      int
		Digests      asn1.RawValue
		Content      asn1.RawValue
		Certificates asn1.RawValue `asn1:"optional,tag:0"`
		CRLs         asn1.RawValue `asn1:"optional,tag:1"`
		Signers      []signerInfo  `asn1:"set"`
	}
	signerInfo struct {
		Version    int
		ID         asn1.RawValue // issuerAndSerial, or [0] key id
		Digest     pkix.AlgorithmIdentifier
		Attributes asn1.RawValue `asn1:"optional,tag:0"`
		Signature  pkix.AlgorithmIdentifier
		Value      []byte
		Unsigned   asn1.RawValue `asn1:"optional,tag:1"`
	}
	issuerAndSerial struct {
		Issuer asn1.RawValue
		Serial *big.Int
	}
)

// describe fills what the first signer of the PKCS#7 says; of a malformed one
// nothing, for only a kernel that enforces signatures would look at it.
func (s *Signature) describe() {
	var info contentInfo
	if _, err := asn1.Unmarshal(s.Raw, &info); err != nil || len(info.Content.Signers) == 0 {
		return
	}
	signer := info.Content.Signers[0]
	s.Hash = algorithmName(signer.Digest.Algorithm)
	s.Algorithm = algorithmName(signer.Signature.Algorithm)
	if signer.ID.Class == asn1.ClassContextSpecific {
		s.KeyID = colons(signer.ID.Bytes)
		return
	}
	var id issuerAndSerial
	if _, err := asn1.Unmarshal(signer.ID.FullBytes, &id); err != nil {
		return
	}
	s.KeyID = colons(id.Serial.Bytes())
	s.Signer = commonName(id.Issuer.FullBytes)
}

func commonName(issuer []byte) string {
	var rdn pkix.RDNSequence
	if _, err := asn1.Unmarshal(issuer, &rdn); err != nil {
		return ""
	}
	var name pkix.Name
	name.FillFromRDNSequence(&rdn)
	return name.CommonName
}

func algorithmName(oid asn1.ObjectIdentifier) string {
	if name, ok := algorithmNames[oid.String()]; ok {
		return name
	}
	return oid.String()
}

// algorithmNames are the algorithms that scripts/sign-file can be told to use.
var algorithmNames = map[string]string{
	"1.3.14.3.2.26":           "sha1",
	"2.16.840.1.101.3.4.2.4":  "sha224",
	"2.16.840.1.101.3.4.2.1":  "sha256",
	"2.16.840.1.101.3.4.2.2":  "sha384",
	"2.16.840.1.101.3.4.2.3":  "sha512",
	"2.16.840.1.101.3.4.2.8":  "sha3-256",
	"2.16.840.1.101.3.4.2.9":  "sha3-384",
	"2.16.840.1.101.3.4.2.10": "sha3-512",
	"1.2.643.7.1.1.2.2":       "streebog256",
	"1.2.643.7.1.1.2.3":       "streebog512",
	"1.2.840.113549.1.1.1":    "rsa",
	"1.2.840.113549.1.1.5":    "rsa-sha1",
	"1.2.840.113549.1.1.11":   "rsa-sha256",
	"1.2.840.113549.1.1.12":   "rsa-sha384",
	"1.2.840.113549.1.1.13":   "rsa-sha512",
	"1.2.840.10045.4.1":       "ecdsa-sha1",
	"1.2.840.10045.4.3.2":     "ecdsa-sha256",
	"1.2.840.10045.4.3.3":     "ecdsa-sha384",
	"1.2.840.10045.4.3.4":     "ecdsa-sha512",
	"2.16.840.1.101.3.4.3.17": "ml-dsa-44",
	"2.16.840.1.101.3.4.3.18": "ml-dsa-65",
	"2.16.840.1.101.3.4.3.19": "ml-dsa-87",
}

// colons prints bytes as modinfo does.
func colons(b []byte) string {
	parts := make([]string, len(b))
	for i, c := range b {
		parts[i] = fmt.Sprintf("%02X", c)
	}
	return strings.Join(parts, ":")
}
