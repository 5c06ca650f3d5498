package guard

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

func request(id string, attempt uint32) *pluginv1.RevokeRequest {
	return &pluginv1.RevokeRequest{Call: &pluginv1.Call{RequestId: id, Attempt: attempt}, LeaseId: "l"}
}

var revoke = &grpc.UnaryServerInfo{FullMethod: pluginv1.Secrets_Revoke_FullMethodName}

func TestReplayForgets(t *testing.T) {
	for _, tc := range []struct {
		name   string
		others int
		later  time.Duration
		runs   int
	}{
		{"not at once", 0, 0, 1},
		{"not while a host may ask again", 0, keepFor - time.Second, 1},
		{"after that", 0, keepFor, 2},
		{"not with some more answers", keepAnswers - 1, 0, 1},
		{"with too many", keepAnswers, 0, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := NewReplay()
			now := time.Unix(0, 0)
			r.now = func() time.Time { return now }
			runs := 0
			call := func(id string, count *int) {
				_, err := r.Intercept(t.Context(), request(id, 0), revoke, func(context.Context, any) (any, error) {
					*count++
					return &pluginv1.RevokeResponse{}, nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			call("x", &runs)
			for i := range tc.others {
				call(fmt.Sprint(i), new(int))
			}
			now = now.Add(tc.later)
			call("x", &runs)
			if runs != tc.runs {
				t.Errorf("%d runs, want %d", runs, tc.runs)
			}
			if len(r.entries) > keepAnswers || len(r.entries) != len(r.order) {
				t.Errorf("%d answers are kept, %d in order", len(r.entries), len(r.order))
			}
		})
	}
}

func TestDuplicatesThatWait(t *testing.T) {
	for _, tc := range []struct {
		name   string
		first  error // of the first run
		runs   int
		second codes.Code
	}{
		{"get the first one's answer", nil, 1, codes.OK},
		{"and its lasting error", status.Error(codes.PermissionDenied, ""), 1, codes.PermissionDenied},
		{"run themselves after an error that may pass", status.Error(codes.Unavailable, ""), 2, codes.OK},
		{"and after one who did not wait", status.Error(codes.Canceled, ""), 2, codes.OK},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := NewReplay()
				runs := 0
				call := func(attempt uint32) error {
					_, err := r.Intercept(t.Context(), request("x", attempt), revoke, func(context.Context, any) (any, error) {
						runs++
						if runs == 1 {
							time.Sleep(time.Second)
							return nil, tc.first
						}
						return nil, nil
					})
					return err
				}
				go func() { _ = call(0) }()
				synctest.Wait()
				if err := call(1); status.Code(err) != tc.second {
					t.Errorf("got %v", err)
				}
				if runs != tc.runs {
					t.Errorf("%d runs, want %d", runs, tc.runs)
				}
			})
		})
	}
}

func TestWaitingEndsWithItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewReplay()
		never := make(chan struct{})
		go func() {
			_, _ = r.Intercept(t.Context(), request("x", 0), revoke, func(context.Context, any) (any, error) {
				<-never
				return nil, nil
			})
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := r.Intercept(ctx, request("x", 1), revoke, nil); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("got %v", err)
		}
		close(never)
	})
}

func TestScrubber(t *testing.T) {
	for _, tc := range []struct{ name, value, in, want string }{
		{"raw", "s3cr3t", "token s3cr3t!", "token [secret]!"},
		{"without its line end", "s3cr3t\n", "token s3cr3t!", "token [secret]!"},
		{"hex, in capitals", "s3cr3t", "733363723374 733363723374", "[secret] [secret]"},
		{"base64 without padding", "s3cr3ts", "czNjcjN0cw czNjcjN0cw==", "[secret] [secret]"},
		{"url-safe base64", "\xff\xfe\xfd\xfc", "__79_A== //79/A==", "[secret] [secret]"},
		{"in a url", "a b&c/d", "?a+b%26c%2Fd or a%20b&c%2Fd", "?[secret] or [secret]"},
		{"in JSON", `a"<b>`, `{"x":"a\"\u003cb\u003e"}`, `{"x":"[secret]"}`},
		{"short, as a word", "7", "pin 7, not 77 nor a7", "pin [secret], not 77 nor a7"},
		{"nothing but space", " \n", "a b", "a b"},
		{"no UTF-8", "\x00\xff\x01\xfe", "x \x00\xff\x01\xfe y", "x [secret] y"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := NewScrubber()
			s.Add([]byte(tc.value))
			if got := s.Error(errors.New(tc.in)).Error(); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
	t.Run("the longer of two comes first", func(t *testing.T) {
		s := NewScrubber()
		s.Add([]byte("pass"))
		s.Add([]byte("password"))
		if got := s.Error(errors.New("password pass")).Error(); got != "[secret] [secret]" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("what an error keeps", func(t *testing.T) {
		s := NewScrubber()
		s.Add([]byte("hunter2"))
		e := errs.Of(s.Error(errs.Retry(errs.ConfigErrorf(errs.Path("hunter2"), "x"), time.Second)))
		if e.Code != errs.Unavailable || e.RetryAfter != time.Second || e.Diagnostics[0].Path[0].Name != Removed {
			t.Errorf("got %+v", e)
		}
	})
	t.Run("it is bounded", func(t *testing.T) {
		s := NewScrubber()
		for i := range keepValues + 5 {
			s.Add(fmt.Appendf(nil, "value-%d", i))
		}
		if len(s.values) != keepValues || len(s.seen) != keepValues {
			t.Errorf("%d values, %d known", len(s.values), len(s.seen))
		}
	})
}

func TestDrain(t *testing.T) {
	d := NewDrain()
	working, finish, done := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		_, err := d.Intercept(t.Context(), nil, nil, func(context.Context, any) (any, error) {
			close(working)
			<-finish
			return nil, nil
		})
		done <- err
	}()
	<-working
	idle := d.Close()
	select {
	case <-idle:
		t.Error("idle with a call at work")
	default:
	}
	if _, err := d.Intercept(t.Context(), nil, nil, nil); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "ending") {
		t.Errorf("a late call: %v", err)
	}
	close(finish)
	if err := <-done; err != nil {
		t.Error(err)
	}
	<-idle
	<-d.Close() // again is no harm
}
