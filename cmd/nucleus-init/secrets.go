package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
)

// secret makes a file of a value. The kernel copies it: the value never is in the
// memory of this process.
func (b *builder) secret(o *initproto.Op) error {
	if o.FD < 0 {
		return fmt.Errorf("%w: no descriptor", initproto.ErrMessage)
	}
	if err := b.in.receiveLate(b.fds); err != nil {
		return err
	}
	src := b.fds[o.FD]
	b.fds[o.FD] = -1
	defer unix.Close(src)
	size, err := secretSize(src, initproto.MaxSecret)
	if err != nil {
		return err
	}
	d, name, err := b.place(o.Target)
	if err != nil {
		return err
	}
	dst, err := unix.Openat(d.fd, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("creating %q: %w", o.Target, os.NewSyscallError("openat", err))
	}
	defer unix.Close(dst)
	for at := int64(0); at < int64(size); {
		n, err := unix.Sendfile(dst, src, &at, size-int(at))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = unix.EIO
		}
		if err != nil {
			return fmt.Errorf("writing %q: %w", o.Target, os.NewSyscallError("sendfile", err))
		}
	}
	return setOwner(dst, o)
}

func secretSize(fd, limit int) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	if st.Size > int64(limit) {
		return 0, fmt.Errorf("%w: a secret of %d bytes", initproto.ErrMessage, st.Size)
	}
	return int(st.Size), nil
}

// secretEnv lays out variables whose values are secrets, each once, in memory
// that forget overwrites, and closes where they came from.
func secretEnv(vars []initproto.SecretVar, fds []int) (env [][]byte, err error) {
	for _, v := range vars {
		if v.FD < 0 || int(v.FD) >= len(fds) {
			return env, fmt.Errorf("%w: descriptor %d of %d", initproto.ErrMessage, v.FD, len(fds))
		}
		src := fds[v.FD]
		fds[v.FD] = -1
		kv, err := readVar(v.Name, src)
		_ = unix.Close(src)
		env = append(env, kv)
		if err != nil {
			return env, fmt.Errorf("variable %q: %w", v.Name, err)
		}
	}
	return env, nil
}

// readVar gives "name=value" with the NUL at its end.
func readVar(name string, src int) ([]byte, error) {
	size, err := secretSize(src, initproto.MaxSecret)
	if err != nil {
		return nil, err
	}
	kv := make([]byte, len(name)+1+size+1)
	value := kv[copy(kv, name+"=") : len(kv)-1]
	for at := 0; at < size; {
		n, err := unix.Pread(src, value[at:], int64(at))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = unix.EIO
		}
		if err != nil {
			return kv, os.NewSyscallError("pread", err)
		}
		at += n
	}
	return kv, nil
}

// forget overwrites what this process still has of values once stage 2 has its
// own copy, which execve takes away.
func (p *prepared) forget() {
	for _, kv := range p.secrets {
		clear(kv)
	}
	runtime.KeepAlive(p)
}
