package boot_test

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kofarm/kofarm/images/store"
)

func sum(data []byte) string {
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])
}

func hashOf(t testing.TB, hex string) v1.Hash {
	t.Helper()
	h, err := v1.NewHash("sha256:" + hex)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// refs lists the blobs that a store's refs to kernels name.
func refs(t testing.TB, s *store.Store) []string {
	t.Helper()
	names, err := s.Refs("boot")
	if err != nil {
		t.Fatal(err)
	}
	var blobs []string
	for _, name := range names {
		d, err := s.Ref("boot", name)
		if err != nil {
			t.Fatal(err)
		}
		blobs = append(blobs, d.Digest.Hex)
	}
	return blobs
}
