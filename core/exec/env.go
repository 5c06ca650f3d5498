package exec

import "strings"

// User is who a further process of a sandbox runs as, as the sandbox numbers ids.
type User struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
}

// MergeEnv gives the variables of base with those of over in their place, or after
// them.
func MergeEnv(base, over []string) []string {
	out := append([]string(nil), base...)
	at := make(map[string]int, len(out))
	for i, kv := range out {
		name, _, _ := strings.Cut(kv, "=")
		at[name] = i
	}
	for _, kv := range over {
		name, _, _ := strings.Cut(kv, "=")
		if i, ok := at[name]; ok {
			out[i] = kv
			continue
		}
		at[name] = len(out)
		out = append(out, kv)
	}
	return out
}

// Getenv gives the value of a variable, "" if there is none.
func Getenv(env []string, name string) string {
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			return v
		}
	}
	return ""
}
