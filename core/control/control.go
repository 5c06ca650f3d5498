// Package control owns the protocol between the verbs of nucleus and the
// supervisor of a sandbox: a SEQPACKET socket in the sandbox's directory that
// carries one JSON object and its descriptors at a time. It knows nothing of
// what a sandbox is, and serves nobody but the supervisor's own user and root.
//
// A connection carries one request: the client sends it, both sides may send
// more messages that belong to it, and when the server's handler returns, the
// connection ends.
package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

const (
	// Version is the version of the protocol: of Message, not of the bodies.
	Version = 1
	// MaxMessage bounds a message. It travels in the socket itself, whose buffer
	// (net.core.wmem_default) is 212,992 bytes.
	MaxMessage = 128 << 10
	// MaxFDs bounds the descriptors of a message.
	MaxFDs = 8
	// SocketName is the socket's name in the directory of its sandbox.
	SocketName = "control.sock"
)

// Kinds of message that every request knows; others are verbs and events.
const (
	KindOK    = "ok"
	KindError = "error"
)

// Codes of an Error.
const (
	CodeBadRequest  = "bad-request"  // not a message of this protocol
	CodeVersion     = "version"      // of another release
	CodeDenied      = "denied"       // not this user's to ask
	CodeUnknownVerb = "unknown-verb" // perhaps of a later release
	CodeState       = "state"        // not possible in the sandbox's present state
	CodeFailed      = "failed"       // tried, and it did not work
	CodeBusy        = "busy"         // too many ask at once
)

// Errors that callers branch on.
var (
	// ErrNoSupervisor means that nobody listens: the sandbox has ended, or never was.
	ErrNoSupervisor = errors.New("no supervisor listens")
	// ErrGone means that the other side has closed the connection. What it had
	// sent before, such as an Error, is still there for Recv.
	ErrGone = errors.New("the other side has closed the connection")
)

// Message is one JSON object in either direction.
type Message struct {
	V    int             `json:"v"`
	Kind string          `json:"kind"`
	Body json.RawMessage `json:"body,omitempty"`
}

// Error is a refusal or a failure as it is sent. Its form is the same in every
// version of the protocol, for it is how one release tells another that they
// do not understand each other.
type Error struct {
	Code string `json:"code"`
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
}

func (e *Error) Error() string { return e.Text }

// Remedy says what to do about it, if the sender knew.
func (e *Error) Remedy() string { return e.Hint }

// TooLargeError is a message that cannot be sent; nothing of it was.
type TooLargeError struct{ Size, Max int }

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("control message of %d bytes: at most %d can be sent", e.Size, e.Max)
}

func refuse(code, format string, args ...any) *Error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...)}
}

// Err gives what an error message says, and nil for any other.
func (m Message) Err() error {
	if m.Kind != KindError {
		return nil
	}
	// Not Decode: a later release may say more, and must still be heard.
	e := new(Error)
	if err := json.Unmarshal(m.Body, e); err != nil || e.Text == "" {
		return refuse(CodeFailed, "an error without text came back (code %q)", e.Code)
	}
	return e
}

// Decode reads the body; without one, into stays as it is. A field that this
// release does not know is an error: ignored, it could be the one that narrows
// what was asked for.
func (m Message) Decode(into any) error {
	if len(m.Body) == 0 {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(m.Body))
	dec.DisallowUnknownFields()
	err := dec.Decode(into)
	if err == nil {
		return nil
	}
	// encoding/json has no type for this error.
	if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return refuse(CodeVersion, "message %q is of another release: field %s is not known here", m.Kind, field)
	}
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		if wrong.Field == "" {
			return refuse(CodeVersion, "message %q is of another release: its body cannot be a %s here", m.Kind, wrong.Value)
		}
		return refuse(CodeVersion, "message %q is of another release: field %q cannot be a %s here", m.Kind, wrong.Field, wrong.Value)
	}
	return refuse(CodeBadRequest, "body of message %q: %v", m.Kind, err)
}

func encode(kind string, body any) ([]byte, error) {
	if !validKind(kind) {
		return nil, fmt.Errorf("control message: %q is no kind", kind)
	}
	m := Message{V: Version, Kind: kind}
	if body != nil {
		var err error
		if m.Body, err = json.Marshal(body); err != nil {
			return nil, fmt.Errorf("control message %q: %w", kind, err)
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("control message %q: %w", kind, err)
	}
	if len(b) > MaxMessage {
		return nil, &TooLargeError{Size: len(b), Max: MaxMessage}
	}
	return b, nil
}

// validKind keeps kinds such that they can be printed, and written to a log.
func validKind(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && (c != '-' || i == 0) {
			return false
		}
	}
	return s != "" && len(s) <= 32
}

// parse reads a message and takes nothing that could mean two things to two
// readers. encoding/json alone lets the last of two equal names win, takes "V"
// for "v", and repairs text that is not UTF-8.
func parse(b []byte) (Message, error) {
	if !utf8.Valid(b) {
		return Message{}, refuse(CodeBadRequest, "the message is not UTF-8")
	}
	var whole json.RawMessage
	if err := json.Unmarshal(b, &whole); err != nil {
		return Message{}, refuse(CodeBadRequest, "the message is not one JSON object: %v", err)
	}
	names, fields, err := members(whole)
	if err != nil {
		return Message{}, err
	}
	var m Message
	unknown := ""
	for _, name := range names {
		var err error
		switch name {
		case "v":
			err = json.Unmarshal(fields[name], &m.V)
		case "kind":
			err = json.Unmarshal(fields[name], &m.Kind)
		case "body":
			m.Body = fields[name]
		default:
			unknown = name
		}
		if err != nil {
			return Message{}, refuse(CodeBadRequest, "the message's field %q: %v", name, err)
		}
	}
	switch {
	case m.V != Version && m.Kind == KindError:
		return m, nil
	case m.V != Version:
		// Said before what is unknown, which it may explain.
		return Message{}, otherVersion(m.V)
	case len(names) > len(fields):
		return Message{}, refuse(CodeBadRequest, "the message has a field twice")
	case unknown != "":
		return Message{}, refuse(CodeBadRequest, "the message has an unknown field %q", unknown)
	}
	if !validKind(m.Kind) {
		return Message{}, refuse(CodeBadRequest, "the message's kind: write 1 to 32 of a-z, 0-9 and -, and no - at its start")
	}
	return m, nil
}

func otherVersion(v int) *Error {
	return refuse(CodeVersion, "the message is of version %d of the control protocol, and this release speaks version %d", v, Version)
}

// members takes a JSON object apart. A name that is there twice is in names
// twice.
func members(object json.RawMessage) (names []string, fields map[string]json.RawMessage, err error) {
	dec := json.NewDecoder(bytes.NewReader(object))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, nil, refuse(CodeBadRequest, "the message is not a JSON object")
	}
	fields = map[string]json.RawMessage{}
	for dec.More() {
		t, err := dec.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return nil, nil, refuse(CodeBadRequest, "the message is not a JSON object")
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, nil, refuse(CodeBadRequest, "the message's %q: %v", name, err)
		}
		names, fields[name] = append(names, name), value
	}
	if _, err := dec.Token(); err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, refuse(CodeBadRequest, "the message is not a JSON object")
	}
	return names, fields, nil
}
