package age_test

import (
	"fmt"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/age"
)

func ExampleNew() {
	p, err := age.New(age.Config{Identities: []string{"/etc/nucleus/age.key"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(p.Configure("db", age.Instance{Path: "/etc/nucleus/secrets/db.age", Trim: true}))
	// Output: <nil>
}
