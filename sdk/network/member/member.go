// Package member is what a network plugin and the core say to each other on the
// descriptor that a network.MemberDialer gets: the plugin asks for a connection to a
// job of the sandbox's stack, and the core, which knows where that is and checks the
// rules anew, answers with a socket of that sandbox's, or tells why there is none.
//
// It is a pair of sequenced-packet sockets. Each message is one packet, of at most
// MaxRequest and AnswerSize bytes; answers come in any order, and have the number of
// their request. At most MaxRequests are worked on at a time: what is sent beyond
// that waits. Whoever sends anything else is cut off.
package member

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

const (
	// MaxRequests is how many requests are worked on at a time.
	MaxRequests = 16
	// MaxRequest is how long a request may be, and AnswerSize how long each answer is.
	MaxRequest = requestHeader + maxJob
	AnswerSize = 10

	requestHeader = 10
	maxJob        = 63 // a label of a name
	version       = 1
)

// ErrMalformed is for bytes that are no message of this version.
var ErrMalformed = errors.New("malformed message")

// Protocol is that of a connection.
type Protocol uint8

// The protocols. None asks for no connection, only for where the job is.
const (
	None Protocol = iota
	TCP
	UDP
)

func (p Protocol) String() string { return [...]string{"", "tcp", "udp"}[p] }

// Families is a set of them.
type Families uint8

// The families.
const (
	V4 Families = 1 << iota
	V6
)

// Request asks for a job.
type Request struct {
	ID       uint32
	Protocol Protocol
	// Family is that of the connection, one of both; 0 with None.
	Family Families
	Port   uint16 // 0 with None
	Job    string
}

// Encode gives a request as it travels.
func (r Request) Encode() []byte {
	b := make([]byte, requestHeader, requestHeader+len(r.Job))
	b[0], b[1], b[2], b[3] = version, byte(r.Protocol), byte(r.Family), byte(len(r.Job))
	binary.BigEndian.PutUint32(b[4:], r.ID)
	binary.BigEndian.PutUint16(b[8:], r.Port)
	return append(b, r.Job...)
}

// DecodeRequest is the inverse of Encode.
func DecodeRequest(b []byte) (Request, error) {
	if len(b) <= requestHeader || b[0] != version || int(b[3]) != len(b)-requestHeader || b[3] > maxJob {
		return Request{}, fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	}
	r := Request{
		ID: binary.BigEndian.Uint32(b[4:]), Protocol: Protocol(b[1]), Family: Families(b[2]),
		Port: binary.BigEndian.Uint16(b[8:]), Job: string(b[requestHeader:]),
	}
	if strings.Trim(r.Job, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		return Request{}, fmt.Errorf("%w: no name of a job", ErrMalformed)
	}
	one := r.Family == V4 || r.Family == V6
	switch {
	case r.Protocol == None && r.Family == 0 && r.Port == 0:
	case (r.Protocol == TCP || r.Protocol == UDP) && one && r.Port != 0:
	default:
		return Request{}, fmt.Errorf("%w: protocol %d, family %d, port %d", ErrMalformed, r.Protocol, r.Family, r.Port)
	}
	return r, nil
}

// Outcome is what came of a request.
type Outcome uint8

// The outcomes.
const (
	_ Outcome = iota
	// Done: the job is there; a connection's socket comes with the answer. It does not
	// block, and is connected or about to be.
	Done
	// Refused: the sandbox's policy has no rule for that.
	Refused
	// Absent: there is no such job in the stack that runs, or it cannot be reached.
	Absent
	// Failed: Errno says why there is no connection; EAGAIN, also of a question where a job
	// is, that the sandbox asks for too much in a second.
	Failed
)

// Answer is one to a Request.
type Answer struct {
	ID      uint32
	Outcome Outcome
	// Families are those in which the job has an address.
	Families Families
	Errno    uint16 // of Failed
}

// Encode gives an answer as it travels.
func (a Answer) Encode() []byte {
	b := make([]byte, AnswerSize)
	b[0], b[1], b[2] = version, byte(a.Outcome), byte(a.Families)
	binary.BigEndian.PutUint32(b[4:], a.ID)
	binary.BigEndian.PutUint16(b[8:], a.Errno)
	return b
}

// DecodeAnswer is the inverse of Encode.
func DecodeAnswer(b []byte) (Answer, error) {
	if len(b) != AnswerSize || b[0] != version || b[3] != 0 {
		return Answer{}, fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	}
	a := Answer{ID: binary.BigEndian.Uint32(b[4:]), Outcome: Outcome(b[1]), Families: Families(b[2]), Errno: binary.BigEndian.Uint16(b[8:])}
	if a.Outcome < Done || a.Outcome > Failed || a.Families&^(V4|V6) != 0 || (a.Outcome == Failed) != (a.Errno != 0) {
		return Answer{}, fmt.Errorf("%w: outcome %d, families %d, error %d", ErrMalformed, a.Outcome, a.Families, a.Errno)
	}
	return a, nil
}
