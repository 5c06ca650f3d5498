package lifecycle

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxPolicy is more than any policy file in use has.
const maxPolicy = 1 << 20

func checkDigest(path string, b []byte, want string) error {
	sum := sha256.Sum256(b)
	got := hex.EncodeToString(sum[:])
	if got != strings.TrimPrefix(strings.ToLower(want), "sha256:") {
		return fmt.Errorf("%s: sha256 is %s, the job pins %s", path, got, want)
	}
	return nil
}

// readPolicy reads a policy file once, so that what is checked is what is used.
func readPolicy(path, digest string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPolicy+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxPolicy {
		return nil, fmt.Errorf("%s: more than %d bytes", path, maxPolicy)
	}
	if digest == "" {
		return b, nil
	}
	return b, checkDigest(path, b, digest)
}
