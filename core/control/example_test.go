package control_test

import (
	"context"
	"fmt"
	"os"

	"github.com/nucleus-runtime/nucleus/core/control"
)

// A supervisor serves one verb, and a client asks for it.
func Example() {
	dir, err := os.MkdirTemp("", "nucleus-control-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)

	server, err := control.Listen(dir)
	if err != nil {
		fmt.Println(err)
		return
	}
	type kill struct {
		Signal string `json:"signal"`
	}
	served := make(chan error)
	go func() {
		served <- server.Serve(context.Background(), func(_ context.Context, c *control.Conn, m control.Message, _ []*os.File) {
			var request kill
			if err := m.Decode(&request); err != nil {
				_ = c.Fail(err)
				return
			}
			if m.Kind != "kill" {
				_ = c.Fail(&control.Error{Code: control.CodeUnknownVerb, Text: fmt.Sprintf("unknown verb %q", m.Kind)})
				return
			}
			_ = c.Send(control.KindOK, map[string]string{"sent": request.Signal})
		})
	}()

	for _, verb := range []string{"kill", "pause"} {
		c, err := control.Dial(context.Background(), dir)
		if err != nil {
			fmt.Println(err)
			return
		}
		var answer struct {
			Sent string `json:"sent"`
		}
		err = c.Call(context.Background(), verb, kill{Signal: "TERM"}, &answer)
		fmt.Println(answer.Sent, err)
		_ = c.Close()
	}
	_ = server.Close()
	fmt.Println(<-served)

	// Output:
	// TERM <nil>
	//  unknown verb "pause"
	// <nil>
}
