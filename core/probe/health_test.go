package probe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// watched runs a watch for some time, and gives what was reported and when.
func watched(t *testing.T, h Health, life time.Duration, lines ...line) (sc *script, reports []string, err error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	defer time.AfterFunc(life, cancel).Stop()
	sc = scripted(lines...)
	err = Watch(ctx, h, sc.try, func(s Status) {
		text := fmt.Sprintf("%s %s %d", time.Since(sc.start), s.State, s.Failing)
		if s.Last != nil {
			text += " " + s.Last.Error()
		}
		reports = append(reports, text)
	})
	return sc, reports, err
}

func TestWatch(t *testing.T) {
	const s = time.Second
	pass, fail := line{0, nil}, line{0, errors.New("no")}
	for name, c := range map[string]struct {
		h       Health
		life    time.Duration
		lines   []line
		began   []time.Duration
		reports []string
		want    string // "" if it was still healthy
	}{
		"a pass makes it healthy, more of them are no news": {
			Health{10 * s, 5 * s, 0, 3},
			35 * s,
			[]line{pass},
			[]time.Duration{10 * s, 20 * s, 30 * s},
			[]string{"0s starting 0", "10s healthy 0"},
			"",
		},
		"failures in a row make it unhealthy": {
			Health{10 * s, 5 * s, 0, 3},
			hang,
			[]line{pass, fail},
			[]time.Duration{10 * s, 20 * s, 30 * s, 40 * s},
			[]string{"0s starting 0", "10s healthy 0", "20s healthy 1 no", "30s healthy 2 no", "40s unhealthy 3 no"},
			"unhealthy after 3 failed probes: no",
		},
		"one that never was healthy becomes unhealthy": {
			Health{10 * s, 5 * s, 0, 2},
			hang,
			[]line{fail},
			[]time.Duration{10 * s, 20 * s},
			[]string{"0s starting 0", "10s starting 1 no", "20s unhealthy 2 no"},
			"unhealthy after 2 failed probes: no",
		},
		"a pass forgets failures": {
			Health{10 * s, 5 * s, 0, 2},
			65 * s,
			[]line{fail, pass, fail, pass, fail, pass},
			[]time.Duration{10 * s, 20 * s, 30 * s, 40 * s, 50 * s, 60 * s},
			[]string{
				"0s starting 0", "10s starting 1 no", "20s healthy 0", "30s healthy 1 no", "40s healthy 0",
				"50s healthy 1 no", "1m0s healthy 0",
			},
			"",
		},
		"one failure is enough if one retry was asked for": {
			Health{10 * s, 5 * s, 0, 1},
			hang,
			[]line{fail},
			[]time.Duration{10 * s},
			[]string{"0s starting 0", "10s unhealthy 1 no"},
			"unhealthy after 1 failed probe: no",
		},
		"failures in the start period do not count": {
			Health{10 * s, 5 * s, 30 * s, 2},
			hang,
			[]line{fail},
			[]time.Duration{10 * s, 20 * s, 30 * s, 40 * s},
			[]string{"0s starting 0", "10s starting 0 no", "30s starting 1 no", "40s unhealthy 2 no"},
			"unhealthy after 2 failed probes: no",
		},
		"a pass ends the start period": {
			Health{10 * s, 5 * s, 100 * s, 2},
			hang,
			[]line{fail, pass, fail},
			[]time.Duration{10 * s, 20 * s, 30 * s, 40 * s},
			[]string{"0s starting 0", "10s starting 0 no", "20s healthy 0", "30s healthy 1 no", "40s unhealthy 2 no"},
			"unhealthy after 2 failed probes: no",
		},
		"a try that began in the start period ends in it": {
			Health{10 * s, 5 * s, 12 * s, 1},
			hang,
			[]line{{4 * s, errRefused}, fail},
			[]time.Duration{10 * s, 24 * s},
			[]string{"0s starting 0", "14s starting 0 connection refused", "24s unhealthy 1 no"},
			"unhealthy after 1 failed probe: no",
		},
		"a start period ends with a try": {
			Health{30 * s, 5 * s, 5 * s, 2},
			hang,
			[]line{fail},
			[]time.Duration{5 * s, 35 * s},
			[]string{"0s starting 0", "5s starting 1 no", "35s unhealthy 2 no"},
			"unhealthy after 2 failed probes: no",
		},
		"the end of a start period is nothing to a healthy one": {
			Health{10 * s, 5 * s, 15 * s, 2},
			25 * s,
			[]line{pass},
			[]time.Duration{10 * s, 20 * s},
			[]string{"0s starting 0", "10s healthy 0"},
			"",
		},
		"a slow try fails, and the interval begins at its end": {
			Health{10 * s, 5 * s, 0, 2},
			hang,
			[]line{{hang, nil}},
			[]time.Duration{10 * s, 25 * s},
			[]string{"0s starting 0", "15s starting 1 no answer within 5s", "30s unhealthy 2 no answer within 5s"},
			"unhealthy after 2 failed probes: no answer within 5s",
		},
		"tries never overlap": {
			Health{s, 60 * s, 0, 1},
			20 * s,
			[]line{{5 * s, nil}},
			[]time.Duration{s, 7 * s, 13 * s, 19 * s},
			[]string{"0s starting 0", "6s healthy 0"},
			"",
		},
		"another reason is news, the same is not": {
			Health{10 * s, 5 * s, 100 * s, 1},
			45 * s,
			[]line{fail, {0, errors.New("no")}, {0, errRefused}},
			[]time.Duration{10 * s, 20 * s, 30 * s, 40 * s},
			[]string{"0s starting 0", "10s starting 0 no", "30s starting 0 connection refused"},
			"",
		},
		"nothing said is no busy loop": {
			Health{},
			hang,
			[]line{fail},
			[]time.Duration{time.Millisecond},
			[]string{"0s starting 0", "1ms unhealthy 1 no"},
			"unhealthy after 1 failed probe: no",
		},
		"a pause is neither a pass nor a failure": {
			Health{10 * s, 5 * s, 0, 2},
			hang,
			[]line{{0, ErrPaused}, pass, fail, {0, ErrPaused}, {hang, nil}},
			[]time.Duration{10 * s, 20 * s, 30 * s, 40 * s, 50 * s},
			[]string{"0s starting 0", "20s healthy 0", "30s healthy 1 no", "55s unhealthy 2 no answer within 5s"},
			"unhealthy after 2 failed probes: no answer within 5s",
		},
		"the end of the context during a try is no failure": {
			Health{10 * s, 5 * s, 0, 1},
			12 * s,
			[]line{{hang, nil}},
			[]time.Duration{10 * s},
			[]string{"0s starting 0"},
			"",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sc, reports, err := watched(t, c.h, c.life, c.lines...)
				sc.wantBegan(t, c.began...)
				if !slices.Equal(reports, c.reports) {
					t.Errorf("reported %q\n    want %q", reports, c.reports)
				}
				if sc.most > 1 {
					t.Errorf("%d tries at once", sc.most)
				}
				var sick *UnhealthyError
				switch {
				case c.want == "":
					if err != context.Canceled || time.Since(sc.start) != c.life { //nolint:errorlint // as it is, not wrapped
						t.Errorf("got %v after %s", err, time.Since(sc.start))
					}
				case !errors.As(err, &sick) || err.Error() != c.want:
					t.Errorf("got %v, want %s", err, c.want)
				case errors.Is(err, context.DeadlineExceeded):
					t.Error("it looks like the end of the caller's context")
				}
			})
		})
	}
}

func TestUnhealthySaysHowLongItWasWell(t *testing.T) {
	fail := line{0, errRefused}
	for name, c := range map[string]struct {
		lines []line
		want  time.Duration
	}{
		"never":            {[]line{fail}, 0},
		"until the last":   {[]line{{0, nil}, {0, nil}, fail}, 20 * time.Second},
		"with a bad phase": {[]line{{0, nil}, fail, {time.Second, nil}, fail}, 31 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, _, err := watched(t, Health{10 * time.Second, 5 * time.Second, 0, 2}, hang, c.lines...)
				var sick *UnhealthyError
				if !errors.As(err, &sick) || sick.Well != c.want || sick.Failures != 2 || !errors.Is(sick.Last, errRefused) {
					t.Errorf("got %#v, want %s", err, c.want)
				}
			})
		})
	}
}
