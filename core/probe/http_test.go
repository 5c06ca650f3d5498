package probe

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
)

func TestHTTPStatus(t *testing.T) {
	for name, c := range map[string]struct {
		head string
		code int
		err  string
	}{
		"a pass":                         {"HTTP/1.1 200 OK\r\nX: y\r\n\r\n", 200, ""},
		"version 1.0":                    {"HTTP/1.0 204 No Content\r\n", 204, ""},
		"a redirection":                  {"HTTP/1.1 302 Found\r\n", 302, ""},
		"the last that passes":           {"HTTP/1.1 399 \r\n", 399, ""},
		"no reason":                      {"HTTP/1.1 200 \r\n", 200, ""},
		"no space either":                {"HTTP/1.1 200\r\n", 200, ""},
		"a line that ends without CR":    {"HTTP/1.1 200\n", 200, ""},
		"a reason that never ends":       {"HTTP/1.1 200 " + strings.Repeat("x", 1<<20), 200, ""},
		"hostile bytes in the reason":    {"HTTP/1.1 200 \x00\x1b[2J", 200, ""},
		"an announcement":                {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n", 100, "the answer has status 100"},
		"another protocol":               {"HTTP/1.1 101 Switching Protocols\r\n", 101, "the answer has status 101"},
		"the last below":                 {"HTTP/1.1 199 \r\n", 199, "the answer has status 199"},
		"the first above":                {"HTTP/1.1 400 Bad Request\r\n", 400, "the answer has status 400"},
		"not there":                      {"HTTP/1.1 404 Not Found\r\n", 404, "the answer has status 404"},
		"not now":                        {"HTTP/1.1 503 Service Unavailable\r\n", 503, "the answer has status 503"},
		"a code of no class":             {"HTTP/1.1 999 \r\n", 999, "the answer has status 999"},
		"a code of nothing":              {"HTTP/1.1 000 \r\n", 0, "the answer has status 0"},
		"nothing":                        {"", 0, "the answer ends before its status"},
		"a beginning":                    {"HTTP/1.", 0, "the answer ends before its status"},
		"a code that may go on":          {"HTTP/1.1 200", 0, "the answer ends before its status"},
		"a code of four digits":          {"HTTP/1.1 2000 OK\r\n", 0, `the answer is no HTTP/1.0 or 1.1: it starts with "HTTP/1.1 2000"`},
		"a code of two digits":           {"HTTP/1.1 20 OK\r\n", 0, `the answer is no HTTP/1.0 or 1.1: it starts with "HTTP/1.1 20 O"`},
		"a code with a sign":             {"HTTP/1.1 +20 OK\r\n", 0, `the answer is no HTTP/1.0 or 1.1: it starts with "HTTP/1.1 +20 "`},
		"two spaces":                     {"HTTP/1.1  200 OK\r\n", 0, `the answer is no HTTP/1.0 or 1.1: it starts with "HTTP/1.1  200"`},
		"a tab":                          {"HTTP/1.1\t200 OK\r\n", 0, `the answer is no HTTP/1.0 or 1.1: it starts with "HTTP/1.1\t200 "`},
		"a space before":                 {" HTTP/1.1 200 OK\r\n", 0, `the answer is no HTTP/1.0 or 1.1: it starts with " HTTP/1.1 200"`},
		"version 2":                      {"HTTP/2.0 200 OK\r\n", 0, `the answer is no HTTP/1.0 or 1.1: it starts with "HTTP/2.0 200 "`},
		"version 1.2":                    {"HTTP/1.2 200 OK\r\n", 0, `the answer is no HTTP/1.0 or 1.1: it starts with "HTTP/1.2 200 "`},
		"lower case":                     {"http/1.1 200 OK\r\n", 0, `the answer is no HTTP/1.0 or 1.1: it starts with "http/1.1 200 "`},
		"another protocol's greeting":    {"SSH-2.0-OpenSSH_9.9\r\n", 0, `the answer is no HTTP/1.0 or 1.1: it starts with "SSH-2.0-OpenS"`},
		"a terminal's escape":            {"\x1b[2J\x07\r\n", 0, `the answer is no HTTP/1.0 or 1.1: it starts with "\x1b[2J\a\r\n"`},
		"digits of another script":       {"HTTP/1.1 ２００ OK\r\n", 0, `the answer is no HTTP/1.0 or 1.1: it starts with "HTTP/1.1 ２\xef"`},
		"wrong before it is long enough": {"X", 0, `the answer is no HTTP/1.0 or 1.1: it starts with "X"`},
	} {
		t.Run(name, func(t *testing.T) {
			code, err := HTTPStatus([]byte(c.head))
			text := ""
			if err != nil {
				text = err.Error()
			}
			if code != c.code || text != c.err {
				t.Errorf("got %d, %s\nwant %d, %s", code, text, c.code, c.err)
			}
		})
	}
}

func TestHTTPStatusHasTypedErrors(t *testing.T) {
	var status *StatusError
	if _, err := HTTPStatus([]byte("HTTP/1.1 503 ")); !errors.As(err, &status) || status.Code != 503 {
		t.Errorf("got %#v", err)
	}
	var answer *AnswerError
	if _, err := HTTPStatus([]byte("220 ready\r\n")); !errors.As(err, &answer) || answer.Start != "220 ready\r\n" {
		t.Errorf("got %#v", err)
	}
	if _, err := HTTPStatus([]byte("HTTP/1.1 20")); !errors.Is(err, ErrShortAnswer) {
		t.Errorf("got %#v", err)
	}
}

// FuzzHTTPStatus compares with net/http, which reads all that passes here, and
// looks for an answer that more bytes would change.
func FuzzHTTPStatus(f *testing.F) {
	for _, s := range []string{"HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 404\n", "HTTP/1.1 099 \r", "HTTP/1.1 20", "", "\x00", "HTTP/2 200\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, head []byte) {
		before := slices.Clone(head)
		code, err := HTTPStatus(head)
		if !bytes.Equal(before, head) {
			t.Fatal("the answer was changed")
		}
		if (err == nil) != (code >= 200 && code <= 399) {
			t.Fatalf("status %d with %v", code, err)
		}
		if err != nil {
			for _, r := range err.Error() {
				if r < ' ' || r == 0x7f || r == 0xfffd {
					t.Fatalf("the error has raw bytes: %q", err.Error())
				}
			}
		}
		if errors.Is(err, ErrShortAnswer) {
			if len(head) >= StatusSize || !bytes.HasPrefix([]byte("HTTP/1."), head[:min(len(head), 7)]) {
				t.Fatalf("%q is said to be short", head)
			}
			return
		}
		more, merr := HTTPStatus(append(before, "999 HTTP/1.1 200 OK\r\n"...))
		if answer := new(AnswerError); more != code || (merr == nil) != (err == nil) || errors.As(merr, &answer) != errors.As(err, &answer) {
			t.Fatalf("%d, %v became %d, %v with more bytes", code, err, more, merr)
		}
		if err != nil {
			return
		}
		line := append(slices.Clone(head[:12]), " OK\r\n\r\n"...)
		r, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(line)), nil)
		if err != nil {
			t.Fatalf("net/http refuses %q: %v", line, err)
		}
		defer r.Body.Close()
		if r.StatusCode != code {
			t.Fatalf("%q has status %d, not %d", line, r.StatusCode, code)
		}
	})
}

func TestHTTPRequest(t *testing.T) {
	for name, c := range map[string]struct {
		url, addr, line, host string
	}{
		"an address":                      {"http://127.0.0.1:8080/ok", "127.0.0.1:8080", "/ok", "127.0.0.1:8080"},
		"the default port":                {"http://10.0.0.2/ok", "10.0.0.2:80", "/ok", "10.0.0.2"},
		"the default port, written":       {"http://10.0.0.2:80/ok", "10.0.0.2:80", "/ok", "10.0.0.2"},
		"localhost":                       {"http://localhost:8080/", "127.0.0.1:8080", "/", "localhost:8080"},
		"localhost in capitals":           {"HTTP://LocalHost/", "127.0.0.1:80", "/", "localhost"},
		"IPv6":                            {"http://[::1]:8080/ok", "[::1]:8080", "/ok", "[::1]:8080"},
		"IPv6 at the default port":        {"http://[fd00:0::1]/ok", "[fd00::1]:80", "/ok", "[fd00::1]"},
		"IPv6 that ends like a port":      {"http://[fd00::80]/ok", "[fd00::80]:80", "/ok", "[fd00::80]"},
		"IPv4 in IPv6":                    {"http://[::ffff:127.0.0.1]/", "127.0.0.1:80", "/", "127.0.0.1"},
		"no path":                         {"http://127.0.0.1", "127.0.0.1:80", "/", "127.0.0.1"},
		"no path, but a query":            {"http://127.0.0.1?a=b", "127.0.0.1:80", "/?a=b", "127.0.0.1"},
		"a query":                         {"http://127.0.0.1/a?b=c&d=%20e", "127.0.0.1:80", "/a?b=c&d=%20e", "127.0.0.1"},
		"an empty query":                  {"http://127.0.0.1/a?", "127.0.0.1:80", "/a?", "127.0.0.1"},
		"an escaped path stays as it is":  {"http://127.0.0.1/a%2Fb%20c", "127.0.0.1:80", "/a%2Fb%20c", "127.0.0.1"},
		"another path is escaped":         {"http://127.0.0.1/ä b", "127.0.0.1:80", "/%C3%A4%20b", "127.0.0.1"},
		"escaped line ends stay escaped":  {"http://127.0.0.1/a%0d%0aX:y?b%0D%0A", "127.0.0.1:80", "/a%0d%0aX:y?b%0D%0A", "127.0.0.1"},
		"a path of two slashes":           {"http://127.0.0.1//a", "127.0.0.1:80", "//a", "127.0.0.1"},
		"a port with zeros before it":     {"http://127.0.0.1:0081/", "127.0.0.1:81", "/", "127.0.0.1:81"},
		"the highest port":                {"http://127.0.0.1:65535/", "127.0.0.1:65535", "/", "127.0.0.1:65535"},
		"a fragment of nothing goes away": {"http://127.0.0.1/a#", "127.0.0.1:80", "/a", "127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			addr, req, err := HTTPRequest(c.url)
			if err != nil {
				t.Fatal(err)
			}
			if addr != netip.MustParseAddrPort(c.addr) {
				t.Errorf("goes to %s, not %s", addr, c.addr)
			}
			want := "GET " + c.line + " HTTP/1.1\r\nHost: " + c.host + "\r\nUser-Agent: nucleus-probe\r\nConnection: close\r\n\r\n"
			if string(req) != want {
				t.Errorf("got  %q\nwant %q", req, want)
			}
		})
	}
}

func TestHTTPRequestRefuses(t *testing.T) {
	const notPlain = "it is no plain http URL such as http://127.0.0.1:8080/ok"
	const escape = "its path and query have bytes that must be written as %XX"
	const port = "it has no port from 1 to 65535"
	const name = "its host is neither an IP address nor localhost: a probe resolves no names"
	for _, c := range []struct{ url, why string }{
		{"", notPlain},
		{"/ok", notPlain},
		{"127.0.0.1:8080/ok", "it is no URL"},
		{"https://127.0.0.1/", notPlain},
		{"unix:///run/x", notPlain},
		{"http:/ok", notPlain},
		{"http:127.0.0.1", notPlain},
		{"http:///ok", notPlain},
		{"http://u:p@127.0.0.1/", notPlain},
		{"http://@127.0.0.1/", notPlain},
		{"http://127.0.0.1/#a", notPlain},
		{"http://127.0.0.1:/", port},
		{"http://127.0.0.1:0/", port},
		{"http://127.0.0.1:65536/", port},
		{"http://127.0.0.1:99999999999999999999/", port},
		{"http://127.0.0.1:+80/", "it is no URL"},
		{"http://127.0.0.1:http/", "it is no URL"},
		{"http://example.com/", name},
		{"http://localhost./", name},
		{"http://localhost.example.com/", name},
		{"http://127.1/", name},
		{"http://0x7f000001/", name},
		{"http://2130706433/", name},
		{"http://127.0.0.01/", name},
		{"http://:80/", name},
		{"http://[127.0.0.1]/", "it is no URL"},
		{"http://[localhost]/", "it is no URL"},
		{"http://::1/", "it is no URL"},
		{"http://[fe80::1%25eth0]/", "its host has a zone: the interfaces of a sandbox have no names that a job could know"},
		{"http://127.0.0.1/?a b", escape},
		{"http://127.0.0.1/?ä", escape},
		{"http://127.0.0.1/?\xff", escape},
		{"http://127.0.0.1/?a HTTP/1.1", escape},
		{"http://127.0.0.1/\r\nX: y", "it is no URL"},
		{"http://127.0.0.1/?\r\nX: y", "it is no URL"},
		{"http://127.0.0.1/?a\x00", "it is no URL"},
		{"http://127.0.0.1%0d%0a/", "it is no URL"},
		{"http://127.0.0.1/%zz", "it is no URL"},
		{"http://127.0.0.1/" + strings.Repeat("a", longestURL), "it is longer than 4096 bytes"},
	} {
		addr, req, err := HTTPRequest(c.url)
		var bad *URLError
		if !errors.As(err, &bad) || bad.Why != c.why || addr.IsValid() || req != nil {
			t.Errorf("%.60q: got %s, %q, %.200v, want %s", c.url, addr, req, err, c.why)
		}
	}
}

// FuzzHTTPRequest looks for a URL that makes more, or something else, than one
// request for itself.
func FuzzHTTPRequest(f *testing.F) {
	for _, s := range []string{
		"http://127.0.0.1:8080/ok", "http://[::1]/a?b=c", "http://localhost", "http://localhost/%0d%0a?\r\n", "http://127.0.0.1/?a b",
		"http://[fe80::1%25\r\n]/", "http://127.0.0.1\r\n/", "http:opaque", "http://[::ffff:1.2.3.4]:81/ä#",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		addr, req, err := HTTPRequest(raw)
		if err != nil {
			var bad *URLError
			if !errors.As(err, &bad) || req != nil || addr.IsValid() {
				t.Fatalf("%s, %q with %v", addr, req, err)
			}
			return
		}
		if !addr.IsValid() || addr.Port() == 0 || addr.Addr().Zone() != "" {
			t.Fatalf("goes to %s", addr)
		}
		if bytes.Count(req, []byte("\r\n")) != 5 || bytes.Count(req, []byte("\n")) != 5 || bytes.Count(req, []byte("\r")) != 5 {
			t.Fatalf("lines of %q", req)
		}
		line, _, _ := bytes.Cut(req, []byte("\r\n"))
		if bytes.Count(line, []byte(" ")) != 2 {
			t.Fatalf("request line %q", line)
		}
		rest := bytes.NewReader(req)
		in := bufio.NewReader(rest)
		r, err := http.ReadRequest(in)
		if err != nil {
			t.Fatalf("net/http refuses %q: %v", req, err)
		}
		if tail, _ := io.ReadAll(in); len(tail) != 0 {
			t.Fatalf("%q follows the request", tail)
		}
		if r.Method != http.MethodGet || r.ContentLength != 0 || !r.Close || len(r.Header) != 2 || r.UserAgent() != "nucleus-probe" {
			t.Fatalf("request %+v", r)
		}
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := r.URL.Path, u.Path; got != want && (got != "/" || want != "") {
			t.Fatalf("path %q of %q", got, raw)
		}
		if r.URL.RawQuery != u.RawQuery {
			t.Fatalf("query %q of %q", r.URL.RawQuery, raw)
		}
	})
}
