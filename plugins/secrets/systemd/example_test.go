package systemd_test

import (
	"fmt"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/systemd"
)

func ExampleNew() {
	p, err := systemd.New(systemd.Config{Directory: "/run/credentials/nucleus.service"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(p.Configure("db", systemd.Instance{Name: "db-password"}))
	fmt.Println(p.Configure("x", systemd.Instance{Name: "../shadow"}))
	// Output:
	// <nil>
	// name: "../shadow" is no name of a credential; 1 to 255 printable ASCII characters without / and :, as systemd wants them
}
