package probe

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// A status line as far as it is read: "HTTP/1.", a 0 or 1, a space, three
// digits, and a byte that ends them. The reason after it is free text that a
// hostile server could make endless, and nothing depends on it.
const (
	statusForm = "HTTP/1.v nnne"
	// StatusSize is how many bytes of an answer decide. More need not be read.
	StatusSize = len(statusForm)
)

// ErrShortAnswer says that an answer is as it should be, but ends too early to
// tell its status. There may be more to read.
var ErrShortAnswer = errors.New("the answer ends before its status")

// StatusError is an answer whose status is no pass.
type StatusError struct {
	Code int
}

func (e *StatusError) Error() string { return fmt.Sprintf("the answer has status %d", e.Code) }

// AnswerError is an answer that is no HTTP. Start is its first StatusSize
// bytes at most, from inside the sandbox and not to be trusted; the text of
// the error has them quoted.
type AnswerError struct {
	Start string
}

func (e *AnswerError) Error() string {
	return fmt.Sprintf("the answer is no HTTP/1.0 or 1.1: it starts with %q", e.Start)
}

// HTTPStatus reads the status of an answer from its first bytes, at most
// StatusSize of them. The error is nil for 200 to 399, which pass as they do
// in Kubernetes; a redirection is an answer, and is not followed. Any other
// status is given with a *StatusError. 1xx is one: it announces another
// answer, which nobody asked for and which may never come.
func HTTPStatus(head []byte) (code int, err error) {
	head = head[:min(len(head), StatusSize)]
	for i, c := range head {
		if !fits(statusForm[i], c) {
			return 0, &AnswerError{Start: string(head)}
		}
		if statusForm[i] == 'n' {
			code = code*10 + int(c-'0')
		}
	}
	if len(head) < StatusSize {
		return 0, ErrShortAnswer
	}
	if code < 200 || code > 399 {
		return code, &StatusError{Code: code}
	}
	return code, nil
}

// fits reports whether a byte can stand where the form has another. A code may
// end the line without the space that RFC 9112 wants before an empty reason,
// as it does from many servers, and a line may end without CR (section 2.2).
func fits(form, c byte) bool {
	switch form {
	case 'v':
		return c == '0' || c == '1'
	case 'n':
		return '0' <= c && c <= '9'
	case 'e':
		return c == ' ' || c == '\r' || c == '\n'
	}
	return c == form
}

// longestURL keeps the request in one write and below what servers take as a
// line, which is 8 KiB with most.
const longestURL = 4096

// URLError is a URL that no probe can be made of.
type URLError struct {
	URL string
	Why string
}

func (e *URLError) Error() string { return fmt.Sprintf("probe of %q: %s", e.URL, e.Why) }

// HTTPRequest makes the bytes of the request for a URL, and says where they
// go. It resolves no names: the resolver of a sandbox is the sandbox's, and
// could send the probe anywhere. Of names there is localhost, always 127.0.0.1.
func HTTPRequest(rawURL string) (addr netip.AddrPort, request []byte, err error) {
	bad := func(why string) (netip.AddrPort, []byte, error) {
		return netip.AddrPort{}, nil, &URLError{URL: rawURL[:min(len(rawURL), longestURL)], Why: why}
	}
	if len(rawURL) > longestURL {
		return bad(fmt.Sprintf("it is longer than %d bytes", longestURL))
	}
	u, err := url.Parse(rawURL)
	switch {
	case err != nil:
		return bad("it is no URL")
	case u.Scheme != "http" || u.Host == "" || u.User != nil || u.Fragment != "":
		return bad("it is no plain http URL such as http://127.0.0.1:8080/ok")
	}
	addr, host, why := authority(u)
	if why != "" {
		return bad(why)
	}
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	if u.RawQuery != "" || u.ForceQuery {
		path += "?" + u.RawQuery
	}
	// A query comes out of net/url as it went in. What may stand in a request
	// line is checked here on what will stand there.
	if path[0] != '/' || strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return bad("its path and query have bytes that must be written as %XX")
	}
	return addr, []byte("GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\nUser-Agent: nucleus-probe\r\nConnection: close\r\n\r\n"), nil
}

// authority gives the address of a URL and the Host field for it, made anew
// from what was parsed, or why there is none.
func authority(u *url.URL) (addr netip.AddrPort, host, why string) {
	name, port := u.Hostname(), uint64(80)
	if p := u.Port(); p != "" || strings.HasSuffix(u.Host, ":") {
		var err error
		if port, err = strconv.ParseUint(p, 10, 16); err != nil || port == 0 {
			return addr, "", "it has no port from 1 to 65535"
		}
	}
	local := strings.EqualFold(name, "localhost")
	ip := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if !local {
		var err error
		ip, err = netip.ParseAddr(name)
		switch {
		case err != nil:
			return addr, "", "its host is neither an IP address nor localhost: a probe resolves no names"
		case ip.Zone() != "":
			return addr, "", "its host has a zone: the interfaces of a sandbox have no names that a job could know"
		}
		// A kernel without IPv6 can dial it all the same.
		ip = ip.Unmap()
	}
	addr = netip.AddrPortFrom(ip, uint16(port))
	host = addr.String()
	if local {
		host = fmt.Sprintf("localhost:%d", port)
	}
	return addr, strings.TrimSuffix(host, ":80"), ""
}
