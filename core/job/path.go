package job

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/nucleus-runtime/nucleus/core/job/internal/hclread"
	"github.com/nucleus-runtime/nucleus/internal/pathname"
)

// sandboxPath reads a path inside the sandbox.
func (d *decoder) sandboxPath(dst *string) func(hclread.Value) {
	return func(v hclread.Value) {
		s, ok := v.String()
		if !ok {
			return
		}
		if why := badSandboxPath(s); why != "" {
			v.Error("Not a sandbox path", fmt.Sprintf("%s %s", hclread.Quote(s), why))
			return
		}
		*dst = s
	}
}

// badSandboxPath says what is wrong with a path inside the sandbox and what to
// write instead. It must be spelt cleanly: two spellings of one target would
// pass for two.
func badSandboxPath(s string) string {
	switch {
	case s == "":
		return `is empty: write an absolute path inside the sandbox, for instance "/data".`
	case badText(s):
		return "holds control characters or is not UTF-8: remove them."
	case len(s) >= 4096:
		return "is longer than 4095 bytes, the most that the kernel takes."
	case hasDotDot(s):
		return `holds "..": write the path that is meant.`
	case !strings.HasPrefix(s, "/"):
		return fmt.Sprintf("is relative: write an absolute path inside the sandbox, for instance %q.", path.Join("/", s))
	case path.Clean(s) != s:
		return fmt.Sprintf("is not clean: write %q.", path.Clean(s))
	}
	for part := range strings.SplitSeq(s, "/") {
		if len(part) > 255 {
			return "has a part longer than 255 bytes, the most that file systems take."
		}
	}
	return ""
}

func hasDotDot(s string) bool {
	for part := range strings.SplitSeq(s, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}

func badText(s string) bool {
	return !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl)
}

// hostPath reads a path on the host and makes it absolute. It looks at the
// text only: what it leads to is checked where it is opened.
func (d *decoder) hostPath(dst *string) func(hclread.Value) {
	return func(v hclread.Value) {
		s, ok := v.String()
		if !ok {
			return
		}
		switch {
		case s == "":
			v.Error("Not a host path", `The path is empty: write an absolute path, or one relative to the job file, for instance "./data".`)
			return
		case badText(s):
			v.Error("Not a host path", fmt.Sprintf("%s holds control characters or is not UTF-8: remove them.", hclread.Quote(s)))
			return
		case s == "~" || strings.HasPrefix(s, "~/"):
			v.Error("Not a host path", fmt.Sprintf("~ is not expanded in %s: write the whole path, or pass it with -var.", hclread.Quote(s)))
			return
		}
		if !filepath.IsAbs(s) {
			s = filepath.Join(d.o.Dir, s)
		}
		*dst = filepath.Clean(s)
	}
}

// hostSource is a host path that becomes visible inside the sandbox.
func (d *decoder) hostSource(dst *string) func(hclread.Value) {
	return func(v hclread.Value) {
		var s string
		if d.hostPath(&s)(v); s == "" {
			return
		}
		if s == "/" {
			v.Error("Host path refused", "The whole host is never given to a sandbox: name the directory that it needs. Without a rootfs block it has the host's programs, read-only.")
			return
		}
		for _, dir := range []string{"/proc", "/sys", "/dev", "/boot"} {
			if pathname.Within(s, dir) {
				own := ""
				if dir != "/boot" {
					own = fmt.Sprintf("; it has a %s of its own", dir)
				}
				v.Error("Host path refused", fmt.Sprintf("%s is in %s, which is never given to a sandbox%s. Name another path.", hclread.Quote(s), dir, own))
				return
			}
		}
		*dst = s
	}
}
