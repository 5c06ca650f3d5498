package command_test

import (
	"fmt"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/command"
)

func ExampleNew() {
	p, err := command.New(command.Config{Commands: []command.Command{
		{Name: "pass", Argv: []string{"/usr/bin/pass", "show"}, Args: []string{"prod/[a-z]+"}},
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(p.Configure("db", command.Instance{Command: "pass", Args: []string{"prod/db"}}))
	fmt.Println(p.Configure("x", command.Instance{Command: "pass", Args: []string{"home/bank"}}))
	// Output:
	// <nil>
	// args[0]: "home/bank" does not match; the operator allows "prod/[a-z]+"
}
