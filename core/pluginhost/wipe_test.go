package pluginhost

import (
	"errors"
	"io"
	"net"
	"testing"
)

// What was read is overwritten at the end, and whoever sends without end is not
// listened to for ever.
func TestWiper(t *testing.T) {
	w := &wiper{}
	here, there := net.Pipe()
	c := &notingConn{here, w}
	go func() {
		for {
			if _, err := there.Write([]byte("secret")); err != nil {
				return
			}
		}
	}()
	b := make([]byte, 6)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "secret" {
		t.Fatalf("%q, %v", b, err)
	}
	pooled := w.Get(6)
	copy(*pooled, b)
	w.size = maxHeld + 1
	if _, err := c.Read(make([]byte, 6)); !errors.Is(err, errFlood) {
		t.Errorf("error %v", err)
	}
	_ = here.Close()
	w.wipe()
	late := []byte("secret")
	w.note(late)
	for what, got := range map[string]string{"read": string(b), "pooled": string(*pooled), "read after the end": string(late)} {
		if got != "\x00\x00\x00\x00\x00\x00" {
			t.Errorf("%s: %q", what, got)
		}
	}
}
