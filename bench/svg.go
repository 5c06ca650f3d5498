package main

import (
	"fmt"
	"html"
	"slices"
	"strings"
)

const (
	plotWidth  = 760
	labelWidth = 170
	barHeight  = 16
	rowHeight  = 24
	panelGap   = 46
)

// bar is one line of a panel: a value, how far a whisker reaches beyond, and
// the text at its end.
type bar struct {
	label   string
	value   float64
	whisker float64
	text    string
	ours    bool
}

// plot draws the run as panels of horizontal bars, with nothing that a viewer
// would have to fetch.
func plot(r *report) string {
	var body strings.Builder
	y := 10
	panel := func(title string, bars []bar) {
		if len(bars) == 0 {
			return
		}
		y += 24
		fmt.Fprintf(&body, `<text x="10" y="%d" class="title">%s</text>`+"\n", y, html.EscapeString(title))
		y += 12
		scale := 0.0
		for _, b := range bars {
			scale = max(scale, b.value, b.whisker)
		}
		for _, b := range bars {
			drawBar(&body, b, y, scale)
			y += rowHeight
		}
		y += panelGap - rowHeight
	}
	panel("Cold start, ms: median, whisker to p95 (shorter is better)", r.coldBars())
	for _, level := range levels {
		panel(fmt.Sprintf("Sandboxes per second, %d at once (longer is better)", level), r.rateBars(level))
	}
	panel("Support memory of an idle sandbox, KiB PSS (shorter is better)", r.idleBars())
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">
<style>.title{font-weight:bold;font-size:13px}.peer{fill:#8aa4bf}.ours{fill:#d9822b}.whisker{stroke:#333;stroke-width:1.5}</style>
<rect width="100%%" height="100%%" fill="#fff"/>
%s</svg>
`, plotWidth, y, plotWidth, y, body.String())
}

func drawBar(w *strings.Builder, b bar, y int, scale float64) {
	const room = plotWidth - labelWidth - 90 // what is left for bars beside labels and numbers
	length := func(value float64) float64 {
		if scale <= 0 {
			return 0
		}
		return value / scale * room
	}
	class := "peer"
	if b.ours {
		class = "ours"
	}
	middle := float64(y) + barHeight/2
	fmt.Fprintf(w, `<text x="%d" y="%.0f" text-anchor="end">%s</text>`+"\n", labelWidth-8, middle+4, html.EscapeString(b.label))
	fmt.Fprintf(w, `<rect class="%s" x="%d" y="%d" width="%.1f" height="%d"/>`+"\n", class, labelWidth, y, length(b.value), barHeight)
	end := length(b.value)
	if b.whisker > b.value {
		end = length(b.whisker)
		fmt.Fprintf(w, `<path class="whisker" d="M%.1f %.1fH%.1fM%.1f %.1fv8"/>`+"\n",
			labelWidth+length(b.value), middle, labelWidth+end, labelWidth+end, middle-4)
	}
	fmt.Fprintf(w, `<text x="%.1f" y="%.0f">%s</text>`+"\n", labelWidth+end+6, middle+4, html.EscapeString(b.text))
}

func (r *report) coldBars() []bar {
	return r.bars(func(row *row) (bar, bool) {
		if len(row.cold) == 0 {
			return bar{}, false
		}
		median := quantile(row.cold, 0.5)
		return bar{value: median, whisker: quantile(row.cold, 0.95), text: fmt.Sprintf("%.1f", median)}, true
	})
}

func (r *report) rateBars(level int) []bar {
	return r.bars(func(row *row) (bar, bool) {
		rates := row.rates[level]
		if len(rates) == 0 {
			return bar{}, false
		}
		median := quantile(rates, 0.5)
		return bar{value: median, whisker: slices.Max(rates), text: fmt.Sprintf("%.0f", median)}, true
	})
}

func (r *report) idleBars() []bar {
	return r.bars(func(row *row) (bar, bool) {
		if row.idles == nil {
			return bar{}, false
		}
		return bar{value: row.idles.SupportPSS, text: fmt.Sprintf("%.0f", row.idles.SupportPSS)}, true
	})
}

func (r *report) bars(of func(*row) (bar, bool)) []bar {
	var bars []bar
	for _, row := range r.rows {
		b, ok := of(row)
		if !ok {
			continue
		}
		b.label, b.ours = row.name, row.host
		bars = append(bars, b)
	}
	return bars
}
