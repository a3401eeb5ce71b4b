package middleware

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
)

// problem is a response that stands in for the handler's: problem details
// (RFC 9457) or text, as the client prefers. Its members are fixed texts and
// names from the configuration. What a request or an error says is not sent.
type problem struct {
	Type             string   `json:"type"`
	Title            string   `json:"title"`
	Status           int      `json:"status"`
	Detail           string   `json:"detail"`
	ViolatedPolicies []string `json:"violated-policies,omitempty"`

	json, text []byte // what is sent; made by ready
}

// ready returns p with its body. Problems that stand ready cost a denial no
// allocation.
func (p problem) ready() *problem {
	if p.Type == "" {
		p.Type = "about:blank" // then the title is that of the status
		p.Title = http.StatusText(p.Status)
	}
	body, err := json.Marshal(p)
	if err != nil { // strings and numbers always encode
		panic(err)
	}
	p.json = append(body, '\n')
	p.text = []byte(p.Title + "\n" + p.Detail + "\n")
	return &p
}

// ServeHTTP writes the response. It may not be stored: it belongs to one client
// and one moment.
func (p *problem) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	values := make(singles, 0, 3)
	p.serve(w, r, &values)
}

const noStore = "no-store"

// serve is ServeHTTP with values that have room for three.
func (p *problem) serve(w http.ResponseWriter, r *http.Request, values *singles) {
	contentType, body := "application/problem+json", p.json
	if prefersText(r.Header["Accept"]) {
		contentType, body = "text/plain; charset=utf-8", p.text
	}
	h := w.Header()
	h["Cache-Control"] = values.of(noStore)
	h["Content-Type"] = values.of(contentType)
	h["X-Content-Type-Options"] = values.of("nosniff")
	w.WriteHeader(p.Status)
	_, _ = w.Write(body)
}

// prefersText reports whether an Accept header ranks text above JSON, as those
// of browsers do. No header, and */* alone, mean JSON: that is what programs
// send. It never refuses: an error in an unwanted format is better than none.
func prefersText(accept []string) bool {
	if len(accept) == 1 && accept[0] == "*/*" {
		return false // what most programs send
	}
	var json, text preference
	for _, line := range accept {
		for line != "" {
			var entry string
			entry, line, _ = strings.Cut(line, ",")
			entry, params, _ := strings.Cut(entry, ";")
			q := quality(params)
			switch strings.ToLower(strings.TrimSpace(entry)) {
			case "application/problem+json", "application/json":
				json.add(3, q)
			case "application/*":
				json.add(2, q)
			case "text/html", "text/plain":
				text.add(3, q)
			case "text/*":
				text.add(2, q)
			case "*/*":
				json.add(1, q)
				text.add(1, q)
			}
		}
	}
	return text.q > json.q
}

// preference is the quality of the most specific media range that matches, and
// the highest of several (RFC 9110, section 12.5.1).
type preference struct {
	specificity int
	q           float64
}

func (p *preference) add(specificity int, q float64) {
	if specificity > p.specificity || specificity == p.specificity && q > p.q {
		*p = preference{specificity, q}
	}
}

// quality is the q of a media range's parameters; 1 if it has none, 0 if it is
// no number.
func quality(params string) float64 {
	for params != "" {
		var param string
		param, params, _ = strings.Cut(params, ";")
		name, value, _ := strings.Cut(param, "=")
		if strings.EqualFold(strings.TrimSpace(name), "q") {
			q, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil || !(q >= 0 && q <= 1) {
				return 0
			}
			return q
		}
	}
	return 1
}
