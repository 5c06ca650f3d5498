package software

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// exchange is a step of a dialogue: once the output shows what is awaited, a
// reply is typed.
type exchange struct {
	await *regexp.Regexp
	reply string
}

// parseDialogue reads lines in pairs: "< " and what to wait for, a regular
// expression; "> " and what to type, with Go's escapes.
func parseDialogue(text string) ([]exchange, error) {
	var steps []exchange
	var awaited *regexp.Regexp
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "< ") && awaited == nil:
			expression, err := regexp.Compile(line[2:])
			if err != nil {
				return nil, err
			}
			awaited = expression
		case strings.HasPrefix(line, "> ") && awaited != nil:
			reply, err := strconv.Unquote(`"` + line[2:] + `"`)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", line, err)
			}
			steps = append(steps, exchange{awaited, reply})
			awaited = nil
		default:
			return nil, fmt.Errorf("%q: lines alternate between awaited output and a reply", line)
		}
	}
	if awaited != nil || len(steps) == 0 {
		return nil, errors.New("a dialogue ends with a reply")
	}
	return steps, nil
}

// terminal collects a command's output and types the replies of a dialogue.
type terminal struct {
	mu    sync.Mutex
	out   strings.Builder
	seen  int // up to where the output has been answered
	rest  []exchange
	queue chan string   // replies to type
	done  chan struct{} // closed when nobody types any more
}

// converse makes a terminal the command's output, and its input if there is a
// dialogue: left open, as a closed one would be typed as an end of file.
func converse(c *exec.Cmd, dialogue []exchange) (*terminal, error) {
	term := &terminal{rest: dialogue, queue: make(chan string, len(dialogue)), done: make(chan struct{})}
	c.Stdout = term
	if len(dialogue) == 0 {
		close(term.done)
		return term, nil
	}
	keys, err := c.StdinPipe()
	if err != nil {
		return nil, err
	}
	// Typing may block while the program writes, so it has a goroutine of its own.
	go func() {
		defer close(term.done)
		for reply := range term.queue {
			if _, err := io.WriteString(keys, reply); err != nil {
				return
			}
		}
	}()
	return term, nil
}

// Write takes output, and queues the replies that it is answered by.
func (t *terminal) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.out.Write(p)
	for len(t.rest) > 0 {
		at := t.rest[0].await.FindStringIndex(t.out.String()[t.seen:])
		if at == nil {
			break
		}
		t.seen += at[1]
		t.queue <- t.rest[0].reply
		t.rest = t.rest[1:]
	}
	return len(p), nil
}

// end gives the output, and an error if the dialogue did not come to its end.
func (t *terminal) end() (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.queue)
	<-t.done
	if len(t.rest) > 0 {
		return t.out.String(), fmt.Errorf("never seen: %s", t.rest[0].await)
	}
	return t.out.String(), nil
}
