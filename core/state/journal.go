package state

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/failpoint"
	"github.com/nucleus-runtime/nucleus/internal/plainfile"
	"github.com/nucleus-runtime/nucleus/internal/plainjson"
)

const journalName = "journal.jsonl"

// JournalError tells of a sandbox with a journal that cannot be used.
type JournalError struct {
	Dir string // of the sandbox
	Err error
}

func (e *JournalError) Error() string { return e.Err.Error() }
func (e *JournalError) Unwrap() error { return e.Err }

// Lost reports whether what is to be undone for the sandbox nobody will know any more. After
// other errors, as of rights, or of a host that is short of something, it is still written there.
func (e *JournalError) Lost() bool {
	var errno syscall.Errno
	return !errors.As(e.Err, &errno) || errno == unix.ELOOP || errno == unix.EISDIR || errno == unix.ENXIO
}

// Phase of an effect in the journal.
const (
	Intent = "intent" // about to happen: its undo is known from here on
	Done   = "done"   // has happened
	Undone = "undone" // is gone again
)

// Record is one line of the journal. Data of an intent holds everything that
// the undo needs in another process, on another day.
type Record struct {
	Seq   int             `json:"seq"`
	Phase string          `json:"phase"`
	Step  string          `json:"step"`
	Data  json.RawMessage `json:"data,omitempty"`
}

// Journal is the append-only record of a sandbox's effects. A record is one
// write(2) to a file opened for appending, so a crash of the process loses
// none that was written and tears none. Only a full disk can tear one, and then
// what was written of it is taken back. It is not synced to disk: nothing of a
// sandbox outlives a power cut but what gc could not find anyway.
type Journal struct {
	mu   sync.Mutex // of what follows: some effects happen beside others
	f    *os.File
	seq  int
	size int64 // of the whole records
	// last is the step of the last record if that is an intent, lastAt where it begins.
	last   string
	lastAt int64
	// left are the effects that are still to be undone, if fresh: of a journal that this
	// process has begun.
	fresh bool
	left  effects
}

// effects are intents that were not undone, oldest first.
type effects []Record

// note takes one more record.
func (e *effects) note(r Record) {
	switch r.Phase {
	case Intent:
		// A later intent of a step knows more of the same effect.
		if i := slices.IndexFunc(*e, func(x Record) bool { return x.Step == r.Step }); i >= 0 {
			(*e)[i] = r
		} else {
			*e = append(*e, r)
		}
	case Undone:
		*e = slices.DeleteFunc(*e, func(x Record) bool { return x.Step == r.Step })
	}
}

func createJournal(path string) (*Journal, error) {
	f, err := plainfile.Open(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	return &Journal{f: f, fresh: true}, nil
}

// openJournal opens the journal of a dead sandbox; one that died before it had
// any gets an empty one. A torn last record is cut off, or the next one would
// go on in the middle of it.
func openJournal(path string) (*Journal, error) {
	// Not blocking: a FIFO in its place must not hang the collection of others.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	j := &Journal{f: f}
	if err := j.mend(); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("journal: %w", err)
	}
	return j, nil
}

// maxJournal is more than any sandbox writes.
const maxJournal = 16 << 20

// sizeOf refuses what is no journal.
func sizeOf(f *os.File) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxJournal {
		return 0, fmt.Errorf("%s: not a journal (%s, %d bytes)", f.Name(), st.Mode(), st.Size())
	}
	return st.Size(), nil
}

func (j *Journal) mend() error {
	size, err := sizeOf(j.f)
	if err != nil {
		return err
	}
	b := make([]byte, size)
	if _, err := j.f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	j.size = int64(bytes.LastIndexByte(b, '\n') + 1)
	if j.size == size {
		return nil
	}
	return j.f.Truncate(j.size)
}

// Intent writes down that an effect is about to happen; once more for the same step,
// that more is known of it.
func (j *Journal) Intent(step string, data any) error {
	b, err := plainjson.Marshal(data)
	if err != nil {
		return fmt.Errorf("journal: %s: %w", step, err)
	}
	return j.append(Record{Phase: Intent, Step: step, Data: b})
}

// Done writes down that an effect has happened.
func (j *Journal) Done(step string) error { return j.append(Record{Phase: Done, Step: step}) }

// Undone writes down that an effect is gone again.
func (j *Journal) Undone(step string) error { return j.append(Record{Phase: Undone, Step: step}) }

// Retract is Undone for an effect that comes and goes: if its intent is the last record,
// that is taken back: the journal does not grow, and needs no room on a full disk. The
// step has no earlier intent, which would be the last again.
func (j *Journal) Retract(step string) error {
	j.mu.Lock()
	taken := false
	if j.last == step && j.f.Truncate(j.lastAt) == nil {
		j.size, j.last, taken = j.lastAt, "", true
		j.left.note(Record{Phase: Undone, Step: step})
	}
	j.mu.Unlock()
	if taken {
		return nil
	}
	return j.Undone(step)
}

// maxRecord is more than any record has: parts of some are told by plugins.
const maxRecord = 1 << 20

func (j *Journal) append(r Record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	r.Seq = j.seq + 1
	line := r.line()
	// What could not be read again must not be written.
	if len(line) > maxRecord || j.size+int64(len(line)) > maxJournal {
		return fmt.Errorf("journal: a record of %d bytes for %s is too long", len(line), r.Step)
	}
	j.seq++
	n, err := j.f.Write(line)
	if err != nil {
		if n > 0 {
			err = errors.Join(err, j.f.Truncate(j.size))
		}
		return full(fmt.Errorf("journal: %w", err))
	}
	j.last, j.lastAt = "", j.size
	if r.Phase == Intent {
		j.last = r.Step
	}
	j.size += int64(n)
	j.left.note(r)
	failpoint.Record(j.seq)
	return nil
}

// line encodes a record. Phases and steps are plain words of ours, which JSON
// quotes as Go does.
func (r Record) line() []byte {
	b := make([]byte, 0, 256)
	b = append(b, `{"seq":`...)
	b = strconv.AppendInt(b, int64(r.Seq), 10)
	b = append(b, `,"phase":`...)
	b = strconv.AppendQuote(b, r.Phase)
	b = append(b, `,"step":`...)
	b = strconv.AppendQuote(b, r.Step)
	if len(r.Data) > 0 {
		b = append(b, `,"data":`...)
		b = append(b, r.Data...)
	}
	return append(b, '}', '\n')
}

// Reset forgets what has happened so far, all of which must have been undone: a
// sandbox that is made anew for years would fill it.
func (j *Journal) Reset() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.f.Truncate(0); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	j.size, j.seq, j.last, j.fresh, j.left = 0, 0, "", true, nil
	return nil
}

// Close closes the file.
func (j *Journal) Close() error {
	if j == nil {
		return nil // of a sandbox that is kept
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.f.Close()
}

// pending reads the intents that were not undone. A torn last line, which only
// a full disk can leave, is an intent whose effect did not happen.
func pending(r io.Reader) ([]Record, error) {
	var out effects
	br := bufio.NewReader(r)
	for {
		line, err := br.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("journal: %w", err)
		}
		var rec Record
		if err := json.Unmarshal(line, &rec); err != nil {
			return nil, fmt.Errorf("journal: %w", err)
		}
		out.note(rec)
	}
}

// Pending gives the effects of a sandbox that are still to be undone, oldest
// first. What this process has written itself it remembers; of what another one wrote it
// reads the file that is open: either way somebody may have removed the state root.
func (d *Dir) Pending() ([]Record, error) {
	d.Journal.mu.Lock()
	defer d.Journal.mu.Unlock()
	if d.Journal.fresh {
		return slices.Clone(d.Journal.left), nil
	}
	records, err := pending(io.NewSectionReader(d.Journal.f, 0, maxJournal))
	if err != nil {
		return nil, &JournalError{Dir: d.Path, Err: err}
	}
	return records, nil
}
