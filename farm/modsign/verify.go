package modsign

import (
	"bytes"
	"crypto/x509"
	"fmt"

	"github.com/kofarm/kofarm/farm/kmod"
)

// maxSignatures bounds how often a module may have been signed.
const maxSignatures = 16

// Strip returns a plain module without its signatures: what was built. It
// shares the memory of the module that is given.
func Strip(module []byte) ([]byte, error) {
	for range maxSignatures {
		sig, size, err := kmod.ReadSignature(bytes.NewReader(module), int64(len(module)))
		if err != nil {
			return nil, err
		}
		if sig == nil {
			return module, nil
		}
		module = module[:size:size]
	}
	return nil, fmt.Errorf("%w: more than %d signatures", kmod.ErrFormat, maxSignatures)
}

// Verify checks that the key of the certificate has signed a plain module, as a
// kernel does that trusts it. Whether the certificate has expired does not
// matter, as it does not to the kernel. The error is [ErrUnsigned] for a
// module without a signature; it wraps [ErrSignature] for one that does not
// hold, or kmod's errors for one that is malformed.
func Verify(module []byte, cert *x509.Certificate) error {
	sig, size, err := kmod.ReadSignature(bytes.NewReader(module), int64(len(module)))
	if err != nil {
		return err
	}
	if sig == nil {
		return ErrUnsigned
	}
	return verify(sig.Raw, sig.IDType, module[:size], cert)
}

// VerifyDetached is Verify for a signature that is not appended: a PKCS#7 in DER.
func VerifyDetached(pkcs7, module []byte, cert *x509.Certificate) error {
	return verify(pkcs7, idPKCS7, module, cert)
}

// idPKCS7 is the one kind of signature that kernels since 4.3 take.
const idPKCS7 = 2

func verify(raw []byte, kind byte, module []byte, cert *x509.Certificate) error {
	refused := func(err error) error {
		return fmt.Errorf("%w (%s): %w", ErrSignature, fingerprint(cert), err)
	}
	if kind != idPKCS7 {
		return refused(fmt.Errorf("a signature of kind %d, kernels since 4.3 take only PKCS#7", kind))
	}
	if err := usable(cert.PublicKey); err != nil {
		return refused(err)
	}
	s, err := signer(raw)
	if err != nil {
		return refused(err)
	}
	if !s.names(cert) {
		return refused(fmt.Errorf("the signature names the certificate of %s", s.who()))
	}
	a, err := s.algorithm(cert.PublicKey)
	if err != nil {
		return refused(err)
	}
	h := a.hash.New()
	h.Write(module)
	if err := check(cert.PublicKey, a.hash, h.Sum(nil), s.Value); err != nil {
		return refused(fmt.Errorf("the module was changed after it was signed, or another key has signed it: %w", err))
	}
	return nil
}
