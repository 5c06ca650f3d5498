package handshake_test

import (
	"errors"
	"net"
	"os"
	"testing"

	"github.com/nucleus-runtime/nucleus/sdk/plugin/handshake"
)

func TestReattachIsRead(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		ok       bool
	}{
		{"good", `{"a":{"protocol":"grpc","protocol_version":1,"pid":7,"network":"unix","addr":"/x"}}`, true},
		{"none", `{}`, true},
		{"no JSON", `a`, false},
		{"net/rpc", `{"a":{"protocol":"netrpc","protocol_version":1,"pid":7,"network":"unix","addr":"/x"}}`, false},
		{"another version", `{"a":{"protocol":"grpc","protocol_version":2,"pid":7,"network":"unix","addr":"/x"}}`, false},
		{"tcp", `{"a":{"protocol":"grpc","protocol_version":1,"pid":7,"network":"tcp","addr":"127.0.0.1:1"}}`, false},
		{"no process", `{"a":{"protocol":"grpc","protocol_version":1,"network":"unix","addr":"/x"}}`, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := handshake.ParseReattach(tc.in); (err == nil) != tc.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestPeersAreChecked(t *testing.T) {
	us := handshake.Peer{PID: os.Getpid(), UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	for _, tc := range []struct {
		name, network string
		check         func(handshake.Peer) error
		want          error
	}{
		{"the one", "unix", handshake.Only(func() (int, uint32) { return us.PID, us.UID }), nil},
		{"another process", "unix", handshake.Only(func() (int, uint32) { return us.PID + 1, us.UID }), handshake.ErrPeer},
		{"another user", "unix", handshake.Only(func() (int, uint32) { return us.PID, us.UID + 1 }), handshake.ErrPeer},
		{"a network, where the kernel knows nothing", "tcp", func(handshake.Peer) error { return nil }, handshake.ErrPeer},
	} {
		t.Run(tc.name, func(t *testing.T) {
			addr := t.TempDir() + "/s"
			if tc.network == "tcp" {
				addr = "127.0.0.1:0"
			}
			l, err := net.Listen(tc.network, addr)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			c, err := net.Dial(tc.network, l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, info, err := handshake.Credentials(tc.check).ClientHandshake(t.Context(), "", c)
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if err == nil && info.(handshake.AuthInfo).Peer != us {
				t.Errorf("got %+v, want %+v", info, us)
			}
		})
	}
}
