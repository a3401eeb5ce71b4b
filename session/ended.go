package session

import (
	"context"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Reason says why a session was ended by others, in at most 32 bytes. It stands in Redis, and
// may be shown to the person. An application may have its own.
type Reason string

const (
	Revoked         Reason = "revoked"          // the person ended it from another device, or an operator did
	PasswordChanged Reason = "password-changed" //
	Disabled        Reason = "disabled"         // the account
	Replaced        Reason = "replaced"         // a login had no room beside it
	Lost            Reason = "lost"             // it was gone while a request ran: expired, or lost by Redis
)

// Cause says why sessions are ended, and who does it. The zero value is Revoked, by nobody
// in particular.
type Cause struct {
	Reason Reason
	// Actor names who does it, in at most 64 bytes, for the event of the end. It is not kept with
	// the session. Like Reason it can be read in Redis, also with Secrets: let it be an ID.
	Actor string
}

const (
	maxReason = 32
	maxActor  = 64
)

// check fills in the default, and says what is wrong.
func (c Cause) check() (Cause, error) {
	if c.Reason == "" {
		c.Reason = Revoked
	}
	switch {
	case len(c.Reason) > maxReason:
		return c, fmt.Errorf("session: Cause.Reason of %d bytes, at most %d are possible", len(c.Reason), maxReason)
	case len(c.Actor) > maxActor:
		return c, fmt.Errorf("session: Cause.Actor of %d bytes, at most %d are possible", len(c.Actor), maxActor)
	}
	return c, nil
}

// Describe says how to label who asks, such as "Firefox on Windows": the label is shown in
// lists of sessions. Login, BeginLogin, Confirm and EndOthers ask for it, and it is kept with
// the session, sealed if there are Secrets. What cannot be printed becomes a space, and what is
// longer than 128 bytes is cut.
func (m *Manager) Describe(ctx context.Context, label func() string) {
	if st := m.unseen(ctx); st != nil {
		st.mu.Lock()
		defer st.mu.Unlock()
		st.client = label
	}
}

const maxLabel = 128

func (st *state) label() string {
	st.mu.Lock()
	label := st.client
	st.mu.Unlock()
	if label == nil {
		return ""
	}
	return cleanLabel(label())
}

func cleanLabel(s string) string {
	s = strings.ToValidUTF8(s[:min(len(s), 2*maxLabel)], "")
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' ' // also what turns the direction of writing
	}, s)
	for len(s) > maxLabel {
		_, last := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-last]
	}
	return strings.TrimSpace(s)
}

// Ended returns why the session that this request's cookie named is over, if others ended
// it: "" if it lives, was logged out, has expired, or there was none. It can be asked until
// the session's Lifetime would have ended, and also on the context of Watch.
//
// Who begins a visitor's session after it, by a change, is still told; who logs in is not. A
// page that was told is not told again, see [Manager.Told].
func (m *Manager) Ended(ctx context.Context) Reason {
	st := m.state(ctx)
	if st == nil {
		return ""
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.asked = st.asked || st.ended != ""
	return st.ended
}

// Told is what middleware.Sessions calls for a navigation (Sec-Fetch-Mode). It says that a person
// sees the response of this request: a page, and not what a script of it asks for. What Ended has
// said to the handler is then not said again: Finish deletes the cookie, except in the Grace after
// the end, or forgets the reason.
func (m *Manager) Told(ctx context.Context) {
	if st := m.unseen(ctx); st != nil {
		st.mu.Lock()
		defer st.mu.Unlock()
		st.seen = true
	}
}
