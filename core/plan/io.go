package plan

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// io turns the job's limits of block devices into throttles.
func (m *maker) io(res *specs.LinuxResources) {
	for _, d := range m.j.Resources.IO {
		path := fmt.Sprintf("resources.io[%q]", d.Device)
		numbers, known := m.in.Devices[d.Device]
		if !known && !strings.HasPrefix(d.Device, "/") {
			numbers = d.Device
		}
		major, minor, ok := deviceNumbers(numbers)
		if !ok {
			m.fail(path, "lsblk -p", "%q is not a block device of this host", d.Device)
			continue
		}
		dev := Device{Name: d.Device, Numbers: fmt.Sprintf("%d:%d", major, minor)}
		if i := slices.IndexFunc(m.p.Devices, func(x Device) bool { return x.Numbers == dev.Numbers }); i >= 0 {
			m.fail(path, "put all limits of the device into one io block", "%q and %q are one block device (%s)", m.p.Devices[i].Name, d.Device, dev.Numbers)
			continue
		}
		m.p.Devices = append(m.p.Devices, dev)
		if res.BlockIO == nil {
			res.BlockIO = &specs.LinuxBlockIO{}
		}
		b := res.BlockIO
		for _, x := range []struct {
			to   *[]specs.LinuxThrottleDevice
			rate uint64
		}{
			{&b.ThrottleReadBpsDevice, d.ReadBPS},
			{&b.ThrottleWriteBpsDevice, d.WriteBPS},
			{&b.ThrottleReadIOPSDevice, d.ReadIOPS},
			{&b.ThrottleWriteIOPSDevice, d.WriteIOPS},
		} {
			if x.rate == 0 {
				continue
			}
			t := specs.LinuxThrottleDevice{Rate: x.rate}
			t.Major, t.Minor = major, minor
			*x.to = append(*x.to, t)
		}
	}
}

// deviceNumbers reads "MAJ:MIN".
func deviceNumbers(s string) (major, minor int64, ok bool) {
	a, b, ok := strings.Cut(s, ":")
	if !ok {
		return 0, 0, false
	}
	major, err1 := strconv.ParseInt(a, 10, 64)
	minor, err2 := strconv.ParseInt(b, 10, 64)
	return major, minor, err1 == nil && err2 == nil && major >= 0 && minor >= 0
}
