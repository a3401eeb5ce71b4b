package console

import (
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gatehouse-go/gatehouse/session"
)

type userData struct {
	User      string        `json:"user"`
	Sessions  []sessionView `json:"sessions"`
	HasEvents bool          `json:"-"`
	Events    []eventView   `json:"events"` // newest first
}

type sessionView struct {
	Handle      string    `json:"handle"`
	Client      string    `json:"client"`
	Since       time.Time `json:"since"`
	LastSeen    time.Time `json:"lastSeen"`
	Expires     time.Time `json:"expires"`
	IdleExpires time.Time `json:"idleExpires"`
}

type eventView struct {
	Time   time.Time `json:"time"`
	What   string    `json:"what"`
	Handle string    `json:"handle,omitempty"`
	Client string    `json:"client,omitempty"`
	Reason string    `json:"reason,omitempty"`
	Actor  string    `json:"actor,omitempty"`
}

const shownEvents = 50

// user shows the sessions of a user, and what has happened to them.
func (c Console) user(r *http.Request) (any, error) {
	user, err := userOf(r)
	if err != nil {
		return nil, err
	}
	d := userData{User: shown(user), Sessions: []sessionView{}, Events: []eventView{}, HasEvents: c.Sessions.EventLog().Retention() != 0}
	infos, err := c.Sessions.List(r.Context(), user)
	if err != nil {
		return nil, err
	}
	for _, i := range infos {
		d.Sessions = append(d.Sessions, sessionView{i.Handle, i.Client, i.Created, i.LastSeen, i.Expires, i.IdleExpires})
	}
	if !d.HasEvents {
		return d, nil
	}
	events, err := c.Sessions.Recent(r.Context(), user, shownEvents)
	for _, e := range events {
		d.Events = append(d.Events, eventView{e.Time, e.Kind.String(), e.Handle, e.Client, string(e.Cause.Reason), e.Cause.Actor})
	}
	return d, err
}

// maxUser is the longest ID of a user, in bytes.
const maxUser = 1024

func userOf(r *http.Request) (string, error) {
	user := typed(r.FormValue("user"))
	if user == "" || len(user) > maxUser {
		return "", failure{http.StatusBadRequest, "Which user? It is the ID that Login was given."}
	}
	return user, nil
}

// end ends one session of a user, or all.
func (c Console) end(r *http.Request) (string, error) {
	user, err := userOf(r)
	if err != nil {
		return "", err
	}
	cause := session.Cause{Reason: session.Reason(r.FormValue("reason")), Actor: visitorOf(r).Actor}
	if cause.Reason == "" || len(cause.Reason) > maxReason {
		return "", failure{http.StatusBadRequest, "Why? In one or two words, at most 32 bytes."}
	}
	if len(cause.Actor) > maxActor {
		cause.Actor = strings.ToValidUTF8(cause.Actor[:maxActor], "") // no half of a character
	}
	page := "user?" + url.Values{"user": {shown(user)}}.Encode()
	if handle := r.FormValue("handle"); handle != "" {
		return page, c.Sessions.End(r.Context(), user, handle, cause)
	}
	if r.FormValue("all") == "" {
		return "", failure{http.StatusBadRequest, "Which session? Its handle, or all."}
	}
	_, err = c.Sessions.EndAll(r.Context(), user, cause)
	return page, err
}

// Bounds of a session.Cause.
const (
	maxReason = 32
	maxActor  = 64
)
