// Package proto_test keeps the wire compatible: everything that baseline.txt
// promises must be there, as it says. buf has a check like this one, and takes
// minutes to build where there is no cache.
package proto_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

var update = flag.Bool("update", false, "add what is new to the baseline")

// baseline has a line for each promise. It only ever grows: what is in it has been
// built into plugins that nobody here can build again.
const baseline = "baseline.txt"

func TestNothingIsTakenBack(t *testing.T) {
	var now []string
	protoregistry.GlobalFiles.RangeFilesByPackage("nucleus.plugin.v1", func(f protoreflect.FileDescriptor) bool {
		now = append(now, promises(f)...)
		return true
	})
	slices.Sort(now)
	b, err := os.ReadFile(baseline)
	if err != nil {
		t.Fatal(err)
	}
	then := strings.FieldsFunc(string(b), func(r rune) bool { return r == '\n' })
	for _, p := range missing(then, now) {
		t.Errorf("no longer so: %s", p)
	}
	added := missing(now, then)
	switch {
	case t.Failed() || len(added) == 0:
	case *update:
		if err := os.WriteFile(baseline, []byte(strings.Join(now, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("not promised yet: %q; go test ./proto -update promises it", added)
	}
}

func missing(of, in []string) []string {
	var out []string
	for _, p := range of {
		if !slices.Contains(in, p) {
			out = append(out, p)
		}
	}
	return out
}

// promises of one file. A number, a name, a type or a label that changes changes its
// line, and so does one that is used for something else.
func promises(f protoreflect.FileDescriptor) []string {
	out := append(ofMessages(f.Messages()), ofEnums(f.Enums())...)
	for i := range f.Services().Len() {
		s := f.Services().Get(i)
		out = append(out, fmt.Sprintf("service %s", s.FullName()))
		for j := range s.Methods().Len() {
			m := s.Methods().Get(j)
			out = append(out, fmt.Sprintf("rpc %s: %s%s -> %s%s", m.FullName(), stream(m.IsStreamingClient()), m.Input().FullName(), stream(m.IsStreamingServer()), m.Output().FullName()))
		}
	}
	return out
}

func stream(is bool) string {
	if is {
		return "stream of "
	}
	return ""
}

func ofMessages(ms protoreflect.MessageDescriptors) []string {
	var out []string
	for i := range ms.Len() {
		m := ms.Get(i)
		if m.IsMapEntry() {
			continue // its field says it
		}
		out = append(out, fmt.Sprintf("message %s", m.FullName()))
		for j := range m.Fields().Len() {
			fd := m.Fields().Get(j)
			out = append(out, fmt.Sprintf("field %s = %d: %s", fd.FullName(), fd.Number(), kind(fd)))
		}
		out = append(out, ofMessages(m.Messages())...)
		out = append(out, ofEnums(m.Enums())...)
	}
	return out
}

func kind(fd protoreflect.FieldDescriptor) string {
	if fd.IsMap() {
		return fmt.Sprintf("map of %s to %s", kind(fd.MapKey()), kind(fd.MapValue()))
	}
	k := fd.Kind().String()
	switch {
	case fd.Message() != nil:
		k = string(fd.Message().FullName())
	case fd.Enum() != nil:
		k = string(fd.Enum().FullName())
	}
	switch {
	case fd.IsList():
		return "list of " + k
	case fd.ContainingOneof() != nil && !fd.ContainingOneof().IsSynthetic():
		return k + ", one of " + string(fd.ContainingOneof().Name())
	case fd.HasOptionalKeyword():
		return k + ", or none"
	default:
		return k
	}
}

func ofEnums(es protoreflect.EnumDescriptors) []string {
	var out []string
	for i := range es.Len() {
		e := es.Get(i)
		out = append(out, fmt.Sprintf("enum %s", e.FullName()))
		for j := range e.Values().Len() {
			v := e.Values().Get(j)
			out = append(out, fmt.Sprintf("value %s.%s = %d", e.FullName(), v.Name(), v.Number()))
		}
	}
	return out
}

// TestBreaksAreSeen shows that the other test would fail.
func TestBreaksAreSeen(t *testing.T) {
	handle := func(f *descriptorpb.FileDescriptorProto) *descriptorpb.DescriptorProto {
		for _, m := range f.GetMessageType() {
			if m.GetName() == "Handle" {
				return m
			}
		}
		t.Fatal("no Handle")
		return nil
	}
	for name, change := range map[string]func(*descriptorpb.FileDescriptorProto){
		"a field is removed": func(f *descriptorpb.FileDescriptorProto) { h := handle(f); h.Field = h.Field[1:] },
		"a field is renamed": func(f *descriptorpb.FileDescriptorProto) { handle(f).Field[0].Name = proto.String("v") },
		"a number changes":   func(f *descriptorpb.FileDescriptorProto) { handle(f).Field[0].Number = proto.Int32(9) },
		"a type changes": func(f *descriptorpb.FileDescriptorProto) {
			handle(f).Field[0].Type = descriptorpb.FieldDescriptorProto_TYPE_UINT64.Enum()
		},
		"one becomes many": func(f *descriptorpb.FileDescriptorProto) {
			handle(f).Field[0].Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
		},
		"a value is removed":    func(f *descriptorpb.FileDescriptorProto) { e := f.EnumType[0]; e.Value = e.Value[:1] },
		"a value is renumbered": func(f *descriptorpb.FileDescriptorProto) { f.EnumType[0].Value[1].Number = proto.Int32(99) },
		"a method is removed":   func(f *descriptorpb.FileDescriptorProto) { s := f.Service[0]; s.Method = s.Method[1:] },
		"a method streams":      func(f *descriptorpb.FileDescriptorProto) { f.Service[0].Method[0].ServerStreaming = proto.Bool(true) },
		"a service is renamed":  func(f *descriptorpb.FileDescriptorProto) { f.Service[0].Name = proto.String("Basic") },
	} {
		t.Run(name, func(t *testing.T) {
			file := pluginv1.File_nucleus_plugin_v1_base_proto
			f := protodesc.ToFileDescriptorProto(file)
			change(f)
			changed, err := protodesc.NewFile(f, protoregistry.GlobalFiles)
			if err != nil {
				t.Fatal(err)
			}
			if len(missing(promises(file), promises(changed))) == 0 {
				t.Error("not seen")
			}
		})
	}
}
