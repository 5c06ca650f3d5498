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
		a, args := &app{}, strings.Fields(test.args)
		for _, root := range []*cobra.Command{a.root(nil), a.root(args)} {
			if got := longFlags(root, args); !slices.Equal(got, strings.Fields(test.want)) {
				t.Errorf("%s: %q became %q, want %q", test.what, test.args, got, test.want)
			}
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
		root := a.root(strings.Fields(test.args))
		var got []string
		for _, c := range root.Commands() {
			if c.Name() == "exec" {
				c.RunE = func(_ *cobra.Command, args []string) error { got = args; return nil }
			}
		}
		root.SetArgs(longFlags(root, strings.Fields(test.args)))
		if err := root.Execute(); err != nil || !slices.Equal(got, strings.Fields(test.want)) {
			t.Errorf("%q: %q, %v, want %q", test.args, got, err, test.want)
		}
	}
}

// Of a verb that comes first nothing but itself is made.
func TestCommands(t *testing.T) {
	a := &app{}
	all := a.root(nil).Commands()
	if len(all) < 20 {
		t.Fatalf("%d verbs", len(all))
	}
	for _, c := range all {
		if c.Name() == "completion" { // cobra's own
			continue
		}
		one := a.root([]string{c.Name(), "-h"}).Commands()
		if len(one) != 1 || one[0].Name() != c.Name() || one[0].UsageString() != c.UsageString() {
			t.Errorf("%s: %d verbs, the first: %s", c.Name(), len(one), one[0].UsageString())
		}
	}
	for _, args := range [][]string{{"-state-root", "x", "run"}, {"help", "run"}, {"runs"}, {"__complete", "run"}} {
		if got := len(a.root(args).Commands()); got != len(all) {
			t.Errorf("%q: %d verbs of %d", args, got, len(all))
		}
	}
}
