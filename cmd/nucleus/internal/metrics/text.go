// Package metrics says what sandboxes use in Prometheus's text format, version 0.0.4
// (https://prometheus.io/docs/instrumenting/exposition_formats/). It asks nobody.
package metrics

import (
	"bytes"
	"strconv"
	"strings"
)

// ContentType is what HTTP calls the format.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// text is the format on its way. The samples of one metric stand together, below what
// describes it; nobody checks that they are of different labels.
type text struct {
	b      bytes.Buffer
	metric string // that is being described
	told   bool   // it has a sample
	head   string
}

// describe begins a metric. One without samples is left out.
func (t *text) describe(name, kind, help string) {
	t.metric, t.told = name, false
	t.head = "# HELP " + name + " " + helpEscapes.Replace(help) + "\n# TYPE " + name + " " + kind + "\n"
}

var (
	helpEscapes  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	labelEscapes = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)

// sample adds one; labels are names and values in turn.
func (t *text) sample(v float64, labels ...string) {
	if !t.told {
		t.b.WriteString(t.head)
		t.told = true
	}
	t.b.WriteString(t.metric)
	for i := 0; i < len(labels); i += 2 {
		t.b.WriteByte("{,"[min(i, 1)])
		t.b.WriteString(labels[i])
		t.b.WriteString(`="`)
		_, _ = labelEscapes.WriteString(&t.b, strings.ToValidUTF8(labels[i+1], "\ufffd")) // to memory
		t.b.WriteByte('"')
	}
	if len(labels) > 0 {
		t.b.WriteByte('}')
	}
	t.b.WriteByte(' ')
	t.b.Write(strconv.AppendFloat(nil, v, 'g', -1, 64))
	t.b.WriteByte('\n')
}
