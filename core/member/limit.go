package member

import (
	"sync"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/network/member"
)

// What the workload asks its resolver, and each connection it begins, makes its plugin ask
// here, and each of these takes the time of two supervisors and an init, which no limit of
// the job counts. So what was found out is kept for a moment, and there are so many
// questions a second.
const (
	// keepTime is for how long it is known where a job is, or that it is not there.
	keepTime = 100 * time.Millisecond
	// perSecond is how many requests a second reach others for long, and burst how many do
	// at once: a thousand connections in both families, looked up in both, are fewer.
	perSecond = 1000
	burst     = 4096
	// tellTime is how often it is told that requests were refused for their number.
	tellTime = time.Second
)

// known is what there is of jobs. Those that a policy has are few, and no other is asked for.
type known struct {
	mu    sync.Mutex
	byJob map[string]found
}

type found struct {
	families member.Families // 0 for a job that is absent
	until    time.Time
}

// answer tells what is known that answers a request. A connection is made each time, but
// to a job that is not there.
func (k *known) answer(q member.Request) (member.Answer, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f, ok := k.byJob[q.Job]
	switch {
	case !ok || !time.Now().Before(f.until):
		return member.Answer{}, false
	case f.families == 0:
		return member.Answer{ID: q.ID, Outcome: member.Absent}, true
	case q.Protocol == member.None:
		return member.Answer{ID: q.ID, Outcome: member.Done, Families: f.families}, true
	}
	return member.Answer{}, false
}

func (k *known) keep(job string, families member.Families) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.byJob == nil {
		k.byJob = map[string]found{}
	}
	k.byJob[job] = found{families, time.Now().Add(keepTime)}
}

// rate is how many requests may reach others: a bucket of tokens that fills evenly.
type rate struct {
	mu   sync.Mutex
	used float64 // of burst, at that time
	at   time.Time
}

func (r *rate) take() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.used = max(0, r.used-now.Sub(r.at).Seconds()*perSecond)
	r.at = now
	if r.used > burst-1 {
		return false
	}
	r.used++
	return true
}

// refusals tells of what was refused for its number: the first at once, then what came
// since, of each kind once in tellTime.
type refusals struct {
	tell func(network.Denial)

	mu    sync.Mutex
	count map[refusal]uint64
	timer *time.Timer // while nothing is told at once
	over  bool
}

// refusal is a kind of them. The jobs are those of the policy.
type refusal struct {
	protocol, job string
	rule          int
}

func (r *refusals) add(x refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.count == nil {
		r.count = map[refusal]uint64{}
	}
	r.count[x]++
	if r.timer == nil && !r.over {
		r.flush()
		r.timer = time.AfterFunc(tellTime, r.due)
	}
}

func (r *refusals) due() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return
	}
	if len(r.count) == 0 {
		r.timer = nil
		return
	}
	r.flush()
	r.timer.Reset(tellTime)
}

// close tells the rest, and nothing more after it.
func (r *refusals) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	if r.timer != nil {
		r.timer.Stop()
	}
	r.flush()
}

func (r *refusals) flush() {
	for x, n := range r.count {
		r.tell(network.Denial{At: time.Now(), Protocol: x.protocol, Name: x.job, Rule: x.rule, Reason: network.ReasonLimit, Count: n})
	}
	clear(r.count)
}
