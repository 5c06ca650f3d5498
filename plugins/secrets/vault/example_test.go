package vault_test

import (
	"fmt"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/vault"
)

func ExampleNew() {
	p, err := vault.New(vault.Config{
		Address: "https://vault.example.com:8200",
		Allow:   []string{"secret/app/*"},
		AppRole: &vault.AppRole{RoleID: "1c9a", SecretIDFile: "/etc/nucleus/vault-secret-id"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(p.Configure("db", vault.Instance{Path: "app/db", Field: "password"}))
	fmt.Println(p.Configure("x", vault.Instance{Path: "payroll/db"}))
	// Output:
	// <nil>
	// path: "secret/payroll/db" is not allowed; the operator allows it with allow = ["secret/payroll/db"] in the host configuration
}
