package env_test

import (
	"fmt"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/env"
)

func ExampleNew() {
	p, err := env.New(env.Config{Allow: []string{"DB_PASSWORD"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(p.Configure("db", env.Instance{Name: "DB_PASSWORD"}))
	fmt.Println(p.Configure("x", env.Instance{Name: "HOME"}))
	// Output:
	// <nil>
	// name: variable HOME is not allowed; the operator allows it with allow = ["HOME"] in the host configuration
}
