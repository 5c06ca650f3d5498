package fact

import "testing"

func TestKernelAtLeast(t *testing.T) {
	for _, tc := range []struct {
		release      string
		major, minor int
		want         bool
	}{
		{"6.12.0-56-amd64", 6, 12, true},
		{"6.12.0", 6, 13, false},
		{"6.1", 5, 14, true},
		{"5.14-rc1", 5, 14, true},
		{"4.19.0", 5, 0, false},
		{"10.0", 6, 12, true},
		{"6", 6, 0, true},
		{"", 3, 8, false},
		{"custom", 3, 8, false},
	} {
		if got := (Host{Kernel: tc.release}).KernelAtLeast(tc.major, tc.minor); got != tc.want {
			t.Errorf("%q at least %d.%d: %v", tc.release, tc.major, tc.minor, got)
		}
	}
}

func TestAFeatureThatNobodyProbedIsUnknown(t *testing.T) {
	f := Host{}.Feature("userns")
	if f.Name != "userns" || f.State != Unknown || f.Why == "" {
		t.Errorf("got %+v", f)
	}
}
