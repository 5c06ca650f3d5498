package plainjson

import (
	"encoding/json"
	"math"
	"net/netip"
	"strings"
	"testing"
	"testing/quick"
	"time"
)

type kind string

func (k kind) Known() bool { return k != "" } // a method, and no marshaler

type shout string

func (s shout) MarshalText() ([]byte, error) { return []byte(strings.ToUpper(string(s)) + "<"), nil }

type raised struct{ A, B int }

func (r raised) MarshalJSON() ([]byte, error) { return json.Marshal([]int{r.A, r.B}) }

// odd is zero when it is not 1.
type odd int

func (o odd) IsZero() bool { return o != 1 }

type base struct {
	Source string `json:"source,omitempty"`
	Deep
}

type Deep struct {
	Level *int `json:"level,omitempty"`
}

type inner struct {
	X       int
	private string
}

type record struct {
	base
	Named       Deep `json:"named"`
	Kind        kind `json:"kind"`
	Text        string
	Dash        string         `json:"-"`
	Bytes       []byte         `json:"bytes"`
	Few         [2]uint16      `json:"few"`
	List        []inner        `json:"list"`
	Some        []string       `json:"some,omitempty"`
	Map         map[kind]int64 `json:"map"`
	Maybe       map[string]any `json:"maybe,omitempty"`
	Numbers     map[int]bool   `json:"numbers,omitempty"`
	Pointer     *inner         `json:"pointer"`
	Absent      *inner         `json:"absent,omitempty"`
	Flag        bool           `json:"flag,omitempty"`
	Small       int8           `json:"small,omitempty"`
	Large       uint64         `json:"large,omitempty"`
	Real        float64        `json:"real,omitempty"`
	Wait        time.Duration  `json:"wait,omitzero"`
	Inner       inner          `json:"inner,omitzero"`
	Odd         odd            `json:"odd,omitzero"`
	Shout       shout          `json:"shout"`
	Shouts      map[shout]int  `json:"shouts"`
	Raised      raised         `json:"raised"`
	RaisedAt    *raised        `json:"raised_at,omitempty"`
	hidden      int
	Raw         json.RawMessage `json:"raw,omitempty"`
	Quoted      quoted          `json:"quoted"`
	ByPointer   byPointer       `json:"by_pointer"`
	Time        time.Time       `json:"time,omitzero"`
	Other       time.Time       `json:"other"`
	Any         any             `json:"any"`
	AddressPort netip.AddrPort  `json:"address"`
}

type quoted struct {
	N int `json:"n,string"`
}

type byPointer struct {
	*Deep
	Y int
}

func same(t *testing.T, v any) {
	t.Helper()
	want, werr := json.Marshal(v)
	got, err := Marshal(v)
	if (err == nil) != (werr == nil) || string(got) != string(want) {
		t.Errorf("%+v:\n got %s (%v)\nwant %s (%v)", v, got, err, want, werr)
	}
}

func TestAsEncodingJSON(t *testing.T) {
	one := 1
	for _, v := range []any{
		nil, 1, "x", true, 1.5, []int(nil),
		[]int{},
		map[string]int(nil),
		map[string]int{},
		(*record)(nil),
		[0]int{},
		struct{}{},
		[]byte{},
		[]byte(nil),
		"<a href=\"x\">&\\ \b\f\n\r\t\x00\x1f\x7f\xff\u2028\u2029\u0085é\U0001f600" + string([]byte{0xe2, 0x80}), json.RawMessage(` {"a": 1} `),
		raised{1, 2},
		&raised{1, 2}, shout("a"),
		map[string]any{"b": 1, "a": []any{nil, "x", map[string]string{"<": ">"}}},
		time.Duration(7),
		[]record{{}},
		[]any{record{}},
		record{},
		&record{
			base: base{Source: "s", Deep: Deep{Level: &one}}, Named: Deep{Level: &one}, Kind: "k", Text: "t", Dash: "no", Bytes: []byte("bytes"), Few: [2]uint16{1, 2},
			List: []inner{{X: 1}, {}}, Some: []string{"a"}, Map: map[kind]int64{"z": 1, "a": -1}, Maybe: map[string]any{"x": nil}, Numbers: map[int]bool{10: true, 9: false},
			Pointer: &inner{X: 3}, Absent: &inner{}, Flag: true, Small: -1, Large: math.MaxUint64, Real: 1e30, Wait: time.Second, Inner: inner{X: 1}, Odd: 1, Shout: "x",
			Shouts: map[shout]int{"x": 1}, Raised: raised{1, 2}, RaisedAt: &raised{3, 4}, hidden: 1, Raw: json.RawMessage(`[1]`), Quoted: quoted{5}, ByPointer: byPointer{&Deep{&one}, 2},
			Time: time.Unix(1, 2), Other: time.Unix(3, 4).UTC(), Any: inner{X: 9}, AddressPort: netip.MustParseAddrPort("[::1]:80"),
		},
		record{Odd: 2, Inner: inner{private: "x"}},
	} {
		same(t, v)
	}
}

func TestStringsAsEncodingJSON(t *testing.T) {
	if err := quick.Check(func(s string, raw []byte) bool {
		for _, x := range []string{s, string(raw)} {
			want, _ := json.Marshal(x)
			if got, err := Marshal(x); err != nil || string(got) != string(want) {
				return false
			}
		}
		return true
	}, nil); err != nil {
		t.Error(err)
	}
}

func TestWhatCannotBeEncoded(t *testing.T) {
	for _, v := range []any{
		math.NaN(), func() {}, make(chan int), map[string]any{"x": make(chan int)}, []any{func() {}}, record{Real: math.Inf(1)}, json.RawMessage(`{`), struct{ F func() }{}, map[bool]int{true: 1},
	} {
		if b, err := Marshal(v); err == nil {
			t.Errorf("%T: %s, no error", v, b)
		}
	}
}
