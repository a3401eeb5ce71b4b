package session

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// maxUserID bounds user IDs, which stand in every record.
const maxUserID = 1024

// LoginOption says more about a Login.
type LoginOption func(*loginOptions)

type loginOptions struct {
	most      int
	replacing *string
	errs      []error
}

// MaxSessions bounds the sessions of this user, as a plan of n devices does. n is at least
// 1, and of n and Accounts.Max the smaller counts.
func MaxSessions(n int) LoginOption {
	return func(o *loginOptions) {
		if n < 1 {
			o.errs = append(o.errs, fmt.Errorf("session: MaxSessions(%d): at least 1 is needed", n))
			return
		}
		o.most = min(o.most, n)
	}
}

// Replacing ends the session of a handle, as List gives it, and logs in in its place. What is no
// handle, "" too, is [ErrUnknownHandle].
func Replacing(handle string) LoginOption {
	return func(o *loginOptions) { o.replacing = &handle }
}

// Login binds the session to a user and saves what was put so far. It always gives a new
// ID and starts both lifetimes anew. Values are kept, unless another user was logged in, or
// in half of a login: then they are cleared. Before it returns Redis has the session, it
// is listed, and the user has no more sessions than allowed. The old ID works until
// Finish retires it, or until the request fails or panics: then the login is undone. After
// that, the old ID leads nowhere, and requests that were under way with it save nothing. If the
// process dies before Finish, what stood before goes on. The login of a browser that had no session
// then stays in the list until its idle timeout, or, with RefuseLogin, for Timeout and Grace.
//
// Two logins at once with the cookie of a visitor give two sessions, of which the browser
// keeps the last cookie. Over a session of the same user they give one: the login that
// finishes last ends the other.
//
// What the handler checks before, a password for example, must be checked in this
// request, or before [Manager.BeginLogin]: a Login is refused if the user's sessions were
// ended since the request was loaded, or since BeginLogin. A Login that would itself end another
// session may also be refused if its request was loaded less than Config.Timeout, with Events twice
// that, after the user's sessions were ended: its reply could come too late to tell, and a refusal
// ends nothing.
//
// A refusal is [ErrStaleLogin], [ErrUnknownHandle] or [ErrTooManySessions], looked at in
// this order. Other errors are [ErrNoUser], [ErrNoSession], [ErrFinished] when the new
// cookie could not be sent, an [*EncodeError], [ErrUnavailable], one for a user ID of more
// than 1,024 bytes or an option that makes no sense, [ErrConflict] if another goroutine of the
// request logs in or out, or ctx's own. After any of them ctx holds what it held before.
func (m *Manager) Login(ctx context.Context, userID string, opts ...LoginOption) (err error) {
	defer m.done(ctx, opLogin, "", m.began(), &err)
	o := loginOptions{most: m.records.accounts.Max}
	for _, set := range opts {
		set(&o)
	}
	if err := errors.Join(o.errs...); err != nil {
		return err
	}
	var replaced handle
	if o.replacing != nil {
		var ok bool
		if replaced, ok = parseHandle(*o.replacing); !ok {
			return ErrUnknownHandle
		}
	}
	return m.enter(ctx, userID, func(d draft) (*record, *pending, entry) {
		r, p := m.loginOver(d, userID)
		r.head.remember(r.head.persistent)
		r.who.user, r.who.authenticated = userID, atBirth
		p.short = len(p.old) > 0 || m.records.accounts.WhenFull == RefuseLogin
		p.tells, p.undone = 0, told{kind: LoginUndone}
		return r, p, entry{most: o.most, replacing: replaced}
	})
}

// BeginLogin notes that a user has passed the first step of a login, the password for
// example, and that another step follows, within a time of at most Config.Lifetime. It
// gives a new ID as Login does: a cookie that was planted before does not see who is about
// to log in. [Manager.UserID] stays "". Over a login, which it ends, and over another
// user's half of a login it starts empty: what was put before is gone, too. What is put after it
// goes on into the login. Where more than two steps follow each other, keep in a value which of
// them was passed: LoginBegun says who has passed the first.
//
// Login completes it, and is refused if the user's sessions were ended since, however
// long the second step took. To begin again for the same user changes nothing about that.
// An unfinished one becomes a visitor's session when its time is over, and is not used for longer
// than that one could be.
//
// The errors are those of Login, but that neither handle nor number is looked at.
func (m *Manager) BeginLogin(ctx context.Context, userID string, within time.Duration) (err error) {
	defer m.done(ctx, opBeginLogin, "", m.began(), &err)
	if most := m.records.lives[login].lifetime; within < time.Millisecond || within > most {
		return fmt.Errorf("session: BeginLogin within %v: between a millisecond and %v is possible", within, most)
	}
	return m.enter(ctx, userID, func(d draft) (*record, *pending, entry) {
		r, p := m.loginOver(d, userID)
		if d.record != nil && d.record.who.user != "" {
			p.startAnew(r)
		}
		r.head.kind, r.who.begun = begun, userID
		p.short, p.tells = len(p.old) > 0, 0
		return r, p, entry{within: within, most: m.records.accounts.Max}
	})
}

// LoginBegun returns the user of a BeginLogin whose time is not over, or "".
func (m *Manager) LoginBegun(ctx context.Context) string {
	st := m.state(ctx)
	if st == nil {
		return ""
	}
	st.mu.Lock()
	r := st.record
	st.mu.Unlock()
	if r == nil || r.head.kind != begun {
		return ""
	}
	if now, err := m.records.loadedNow(ctx, r.id); err != nil || now >= r.note.until {
		return ""
	}
	return r.who.begun
}

// Confirm notes that the user who is logged in has proved anew who they are:
// AuthenticatedAt is now. The session gets a new ID, as with Login, and keeps everything
// else, its lifetimes and its handle too.
//
// The error is [ErrNoUser] if nobody is logged in, [ErrEnded], [ErrMoved], or one of Login that is no
// refusal.
func (m *Manager) Confirm(ctx context.Context) (err error) {
	defer m.done(ctx, opConfirm, "", m.began(), &err)
	return m.renew(ctx, Confirmed, func(r *record, now int64) { r.who.authenticated = now })
}

// enter makes the record of a Login or a BeginLogin, and has ctx hold it.
func (m *Manager) enter(ctx context.Context, userID string, over func(draft) (*record, *pending, entry)) error {
	st := m.state(ctx)
	if st == nil {
		return ErrNoSession
	}
	st.abandon(m) // a login stands beside the session, and not over it
	if err := checkUserID(userID); err != nil {
		return err
	}
	return m.changeID(ctx, func(ctx context.Context, st *state, d draft) (*record, *pending, error) {
		r, p, e := over(d)
		e.short, e.own = m.short(p), st.raisedBy(r.id.owner)
		var err error
		if e.since, err = m.loadedAt(ctx, st, r.id); err != nil {
			return nil, nil, err
		}
		e.loaded = st.began
		if old := d.record; old != nil {
			if old.who.begun == userID && old.note.until > e.since {
				e.fence = old.note.fence[:]
			}
			if old.head.handle == r.head.handle {
				e.from = old.id.field
			}
		}
		a, err := m.records.login(ctx, r, e)
		if err == errOrphaned { // it is another session
			r.head.handle, e.from = newHandle(), ""
			a, err = m.records.login(ctx, r, e)
		}
		switch {
		case isRefusal(err):
			return nil, nil, err
		case err == nil && a.outcome == refused:
			err = ErrConflict // nobody else knows the ID
		case err == errMargin:
			err = ErrStaleLogin
		case err == nil: // not before it is known that there is a login
			err = m.overtake(ctx, d)
		}
		return r, p, err
	})
}

// loadedAt is when a request was loaded, at the earliest, by the clock of the server that
// keeps a session.
func (m *Manager) loadedAt(ctx context.Context, st *state, at id) (int64, error) {
	if _, err := m.records.now(ctx, at); err != nil {
		return 0, err
	}
	return m.records.clocks.earliest(at, st.began), nil
}

// loginOver returns the record of a login over what a draft has, and what is to be retired.
func (m *Manager) loginOver(d draft, userID string) (*record, *pending) {
	old := d.record
	r := &record{id: m.records.keys.fresh(m.records.keys.user(userID))}
	r.head = head{persistent: d.facts.persistent, handle: newHandle()}
	r.who.client = d.client
	p := d.successor(old)
	switch {
	case old == nil:
	case old.who.user == userID:
		r.head.handle = old.head.handle
		fallthrough
	case old.who.user == "" && (old.who.begun == "" || old.who.begun == userID):
		r.values = old.values
	default: // another user
		p.startAnew(r)
		return r, p
	}
	r.values = r.values.Change(d.changes)
	return r, p
}

// renew gives the session of a user a new ID without grace, which tells what it is.
func (m *Manager) renew(ctx context.Context, tells EventKind, change func(r *record, now int64)) error {
	return m.changeID(ctx, func(ctx context.Context, st *state, d draft) (*record, *pending, error) {
		old := d.record
		for {
			switch {
			case d.dead:
				return nil, nil, ErrEnded
			case old == nil || old.who.user == "":
				return nil, nil, ErrNoUser
			}
			now, err := m.records.loadedNow(ctx, old.id)
			if err != nil {
				return nil, nil, err
			}
			r := d.over(old)
			r.id = m.records.keys.fresh(old.id.owner)
			r.who.issued = now
			if d.client != "" {
				r.who.client = d.client
			}
			change(r, now)
			p := d.successor(old)
			p.short, p.same = true, d.login == nil || d.login.same
			if p.tells != Confirmed { // whose ID is new, too
				p.tells = tells
			}
			a, err := m.records.beside(ctx, r, old, m.records.timeout+m.records.grace)
			if err != nil || a.outcome != refused {
				return r, p, err
			}
			f, err := m.records.met(ctx, old.id, a)
			switch {
			case err != nil:
				return nil, nil, err
			case steps[f.what][logIn] == bury: // there is nothing any more that could go on
				return nil, nil, m.gone(ctx, st, d, f.why())
			case ctx.Err() != nil:
				return nil, nil, conflict(ctx.Err())
			}
			old = f.record
		}
	})
}
