package file_test

import (
	"context"
	"fmt"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/file"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

func ExampleNew() {
	p, err := file.New(file.Config{Dirs: []string{"/nonexistent"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := p.Configure("db", file.Instance{Path: "/etc/passwd", Trim: true}); err != nil {
		fmt.Println(err)
		return
	}
	_, err = p.Fetch(context.Background(), secrets.Call{}, []secrets.Ref{{Name: "db-password", InstanceID: "db"}})
	fmt.Println(err)
	// Output: secret "db-password": open "/etc/passwd": not below /nonexistent; move the file there, or add its directory to dirs in the host configuration
}
