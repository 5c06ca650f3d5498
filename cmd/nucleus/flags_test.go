package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestLongFlags(t *testing.T) {
	for _, test := range []struct{ what, args, want string }{
		{"nothing", "", ""},
		{"one dash", "run -config job.hcl", "run --config job.hcl"},
		{"two dashes", "run --config job.hcl", "run --config job.hcl"},
		{"with its value", "run -config=job.hcl -var a=-b", "run --config=job.hcl --var a=-b"},
		{"short flags", "logs -f -n 3 web", "logs -f -n 3 web"},
		{"standard input", "run -config - -name x", "run --config - --name x"},
		{"a value that looks like a flag", "run -name -x", "run --name -x"},
		{"behind -- is the workload's", "run -config x -- cmd -foo", "run --config x -- cmd -foo"},
		{"behind the sandbox of exec is the command's", "exec web ls -la", "exec web -- ls -la"},
		{"a command's flags that are ours", "exec web sh -tty -env x", "exec web -- sh -tty -env x"},
		{"flags of exec", "exec -tty -env A=b -workdir /tmp web sh -x", "exec --tty --env A=b --workdir /tmp web -- sh -x"},
		{"-- behind exec's sandbox", "exec web -- ls -la", "exec web -- ls -la"},
		{"-- in exec's command", "exec web git -C x -- y", "exec web -- git -C x -- y"},
		{"flags before the verb", "-state-root DIR exec -user 5 web sh -c x", "--state-root DIR exec --user 5 web -- sh -c x"},
		{"the same name for value and verb", "-state-root exec exec -user 5 web sh -c x", "--state-root exec exec --user 5 web -- sh -c x"},
		{"the value of a flag is no sandbox", "exec -user=5 -env NAME=web box sh -c x", "exec --user=5 --env NAME=web box -- sh -c x"},
		{"a sandbox and no command", "exec web", "exec web"},
		{"a sandbox named as a verb", "exec run ls -la", "exec run -- ls -la"},
		{"a sandbox of another verb named exec", "rm -force exec -force", "rm --force exec --force"},
		{"-- before exec's sandbox", "exec -- web ls -la", "exec -- web ls -la"},
	} {
		a := &app{}
		args := strings.Fields(test.args)
		got := longFlags(a.root(args), args)
		if !slices.Equal(got, strings.Fields(test.want)) {
			t.Errorf("%s: %q became %q, want %q", test.what, test.args, got, test.want)
		}
	}
}

// What cobra makes of it is what counts.
func TestExecArguments(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"exec web ls -la", "web ls -la"},
		{"exec web -- ls -la", "web ls -la"},
		{"exec -user 5 web sh -c x", "web sh -c x"},
		{"-state-root DIR exec -user 5 web sh -c x", "web sh -c x"},
		{"exec web git -- y", "web git -- y"},
		{"exec web ls -h", "web ls -h"},
		{"exec web nucleus exec -tty x y", "web nucleus exec -tty x y"},
	} {
		a := &app{}
		args := strings.Fields(test.args)
		root := a.root(args)
		var got []string
		for _, c := range root.Commands() {
			if c.Name() == "exec" {
				c.RunE = func(_ *cobra.Command, args []string) error { got = args; return nil }
			}
		}
		root.SetArgs(longFlags(root, args))
		if err := root.Execute(); err != nil || !slices.Equal(got, strings.Fields(test.want)) {
			t.Errorf("%q: %q, %v, want %q", test.args, got, err, test.want)
		}
	}
}

// A verb that is not made by its name would be unknown when it is asked for.
func TestVerbsByName(t *testing.T) {
	a := &app{}
	for _, v := range a.verbs() {
		if made := v.command().Name(); made != v.name {
			t.Errorf("%s makes %s", v.name, made)
		}
		root := a.root([]string{v.name})
		if found, _, err := root.Find([]string{v.name}); err != nil || found.Name() != v.name || len(root.Commands()) != 1 {
			t.Errorf("%s: %v, %v, beside %d others", v.name, found.Name(), err, len(root.Commands())-1)
		}
	}
	if all := a.root([]string{"-h"}).Commands(); len(all) != len(a.verbs())+1 { // and completion
		t.Errorf("%d verbs of %d", len(all), len(a.verbs()))
	}
}
