package wire

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

var handleName = (*pluginv1.Handle)(nil).ProtoReflect().Descriptor().FullName()

// Handles calls f for each handle anywhere in a message, so that nobody has to
// remember which have one.
func Handles(m any, f func(*pluginv1.Handle) error) error {
	msg, ok := m.(proto.Message)
	if !ok {
		return nil
	}
	return walk(msg.ProtoReflect(), f)
}

func walk(m protoreflect.Message, f func(*pluginv1.Handle) error) (err error) {
	if m.Descriptor().FullName() == handleName {
		return f(m.Interface().(*pluginv1.Handle))
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() == nil {
				return true
			}
			v.Map().Range(func(_ protoreflect.MapKey, e protoreflect.Value) bool {
				err = walk(e.Message(), f)
				return err == nil
			})
		case fd.Message() == nil:
		case fd.IsList():
			for i := 0; i < v.List().Len() && err == nil; i++ {
				err = walk(v.List().Get(i).Message(), f)
			}
		default:
			err = walk(v.Message(), f)
		}
		return err == nil
	})
	return err
}
