package modsign

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
)

// The PKCS#7 of a module is CMS's SignedData (RFC 5652): detached, without
// certificates and without signed attributes, with the signer named by issuer
// and serial number. It is encoded here because the libraries for it
// (smallstep/pkcs7, digitorus/pkcs7) write another one: they always include
// the certificate where there are no signed attributes, leave out the NULL that
// RFC 3370 (3.2) wants behind rsaEncryption, and keep the content in memory
// twice. The measure is scripts/sign-file's output.
type (
	contentInfo struct {
		Type    asn1.ObjectIdentifier
		Content signedData `asn1:"explicit,tag:0"`
	}
	signedData struct {
		Version      int
		Digests      []pkix.AlgorithmIdentifier `asn1:"set"`
		Content      encapsulated
		Certificates asn1.RawValue `asn1:"optional,tag:0"`
		CRLs         asn1.RawValue `asn1:"optional,tag:1"`
		Signers      []signerInfo  `asn1:"set"`
	}
	encapsulated struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue `asn1:"optional,explicit,tag:0"`
	}
	signerInfo struct {
		Version    int
		ID         asn1.RawValue // issuerAndSerial, or [0] with the subject's key id
		Digest     pkix.AlgorithmIdentifier
		Attributes asn1.RawValue `asn1:"optional,tag:0"`
		Algorithm  pkix.AlgorithmIdentifier
		Value      []byte
		Unsigned   asn1.RawValue `asn1:"optional,tag:1"`
	}
	issuerAndSerial struct {
		Issuer asn1.RawValue
		Serial *big.Int
	}
)

var (
	oidData       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidRSA        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
)

// algorithm is a hash with its names: its own, and with ECDSA. With RSA the
// signature's algorithm is RSA whatever the hash.
type algorithm struct {
	hash       crypto.Hash
	oid, ecdsa asn1.ObjectIdentifier
}

var algorithms = map[Hash]algorithm{
	SHA224: newAlgorithm(crypto.SHA224, 4, 1),
	SHA256: newAlgorithm(crypto.SHA256, 1, 2),
	SHA384: newAlgorithm(crypto.SHA384, 2, 3),
	SHA512: newAlgorithm(crypto.SHA512, 3, 4),
}

// newAlgorithm takes the last number of each name: of nistAlgorithms' hashAlgs
// and of ANSI X9.62's ecdsa-with-SHA2.
func newAlgorithm(h crypto.Hash, hash, ecdsa int) algorithm {
	return algorithm{h, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, hash}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, ecdsa}}
}

// encode makes the PKCS#7 with a signature's value.
func encode(cert *x509.Certificate, a algorithm, value []byte) ([]byte, error) {
	id, err := asn1.Marshal(issuerAndSerial{asn1.RawValue{FullBytes: cert.RawIssuer}, cert.SerialNumber})
	if err != nil {
		return nil, fmt.Errorf("encoding the signer's name: %w", err)
	}
	how := pkix.AlgorithmIdentifier{Algorithm: a.ecdsa}
	if _, ok := cert.PublicKey.(*rsa.PublicKey); ok {
		how = pkix.AlgorithmIdentifier{Algorithm: oidRSA, Parameters: asn1.NullRawValue}
	}
	digest := pkix.AlgorithmIdentifier{Algorithm: a.oid} // without parameters: RFC 5754, 2
	der, err := asn1.Marshal(contentInfo{oidSignedData, signedData{
		Version: 1, Digests: []pkix.AlgorithmIdentifier{digest}, Content: encapsulated{Type: oidData},
		Signers: []signerInfo{{Version: 1, ID: asn1.RawValue{FullBytes: id}, Digest: digest, Algorithm: how, Value: value}},
	}})
	if err != nil {
		return nil, fmt.Errorf("encoding the signature: %w", err)
	}
	return der, nil
}

// signer gives the one signer of a PKCS#7, which must be such as a kernel takes
// of a module (crypto/asymmetric_keys/pkcs7_verify.c).
func signer(der []byte) (*signerInfo, error) {
	var info contentInfo
	rest, err := asn1.Unmarshal(der, &info)
	switch {
	case err != nil:
		return nil, fmt.Errorf("it is no PKCS#7: %w", err)
	case len(rest) > 0:
		return nil, fmt.Errorf("%d bytes follow the PKCS#7", len(rest))
	case !info.Type.Equal(oidSignedData) || !info.Content.Content.Type.Equal(oidData):
		return nil, errors.New("the PKCS#7 holds no signature over data")
	case len(info.Content.Content.Content.FullBytes) > 0:
		return nil, errors.New("the PKCS#7 holds data of its own")
	case len(info.Content.Signers) != 1:
		return nil, fmt.Errorf("the PKCS#7 has %d signers, want one", len(info.Content.Signers))
	}
	s := &info.Content.Signers[0]
	if len(s.Attributes.FullBytes) > 0 {
		return nil, errors.New("the PKCS#7 has signed attributes, with which no kernel takes a module")
	}
	return s, nil
}

// names tells whether the signer is the certificate's.
func (s *signerInfo) names(cert *x509.Certificate) bool {
	if s.ID.Class == asn1.ClassContextSpecific {
		return s.ID.Tag == 0 && len(cert.SubjectKeyId) > 0 && string(s.ID.Bytes) == string(cert.SubjectKeyId)
	}
	var id issuerAndSerial
	rest, err := asn1.Unmarshal(s.ID.FullBytes, &id)
	return err == nil && len(rest) == 0 && string(id.Issuer.FullBytes) == string(cert.RawIssuer) && id.Serial.Cmp(cert.SerialNumber) == 0
}

// who names a signer for people.
func (s *signerInfo) who() string {
	if s.ID.Class == asn1.ClassContextSpecific {
		return fmt.Sprintf("key id %X", s.ID.Bytes)
	}
	var id issuerAndSerial
	var rdn pkix.RDNSequence
	if _, err := asn1.Unmarshal(s.ID.FullBytes, &id); err != nil {
		return "nobody"
	}
	if _, err := asn1.Unmarshal(id.Issuer.FullBytes, &rdn); err != nil {
		return fmt.Sprintf("serial number %X", id.Serial)
	}
	return fmt.Sprintf("issuer %q, serial number %X", rdn.String(), id.Serial)
}

// algorithm finds what a signer has signed with, and that it goes with a
// certificate's key. Kernels take no other names for it.
func (s *signerInfo) algorithm(public crypto.PublicKey) (algorithm, error) {
	_, ofRSA := public.(*rsa.PublicKey)
	for _, a := range algorithms {
		if !a.oid.Equal(s.Digest.Algorithm) {
			continue
		}
		if ofRSA && oidRSA.Equal(s.Algorithm.Algorithm) || !ofRSA && a.ecdsa.Equal(s.Algorithm.Algorithm) {
			return a, nil
		}
		return algorithm{}, fmt.Errorf("signature algorithm %s does not go with the certificate's key and the hash", s.Algorithm.Algorithm)
	}
	return algorithm{}, fmt.Errorf("hash %s, known are %q", s.Digest.Algorithm, Hashes())
}

// check checks the value of a signature.
func check(public crypto.PublicKey, hash crypto.Hash, digest, value []byte) error {
	switch p := public.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(p, hash, digest, value)
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(p, digest, value) {
			return nil
		}
		return errors.New("ECDSA verification error")
	}
	return usable(public)
}
