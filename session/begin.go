package session

import (
	"context"

	"github.com/gatehouse-go/gatehouse/internal/codec"
)

// begin makes the session of a visitor who has none.
func (m *Manager) begin(ctx context.Context, st *state, d draft) error {
	if err := m.mark(ctx, st, d, d.begun, endReplace); err != nil {
		return err
	}
	r := &record{id: d.begun, values: codec.Values{}.Change(d.changes)}
	r.head = head{kind: d.facts.kind, persistent: d.facts.persistent, handle: newHandle()}
	if !d.told {
		r.who.reason = d.ended
	}
	a, err := m.records.create(ctx, r)
	if err != nil {
		return err
	}
	if a.outcome != refused {
		m.wrote(d)
		st.apply(m, d, r)
		return nil
	}
	// Another commit of this request has begun it.
	f, err := m.records.met(ctx, r.id, a)
	if err != nil {
		return err
	}
	if steps[f.what][save] == drop {
		m.lose(ctx, st, d, f.why())
		return ErrEnded
	}
	return m.update(ctx, st, d, f.record, 0)
}

// mark leaves a tombstone at the IDs that the cookies named, for a session that this request
// begins: an answer that was under way since before must not set its cookie over this one's.
// If another's tombstone came first, this request is the late one. After a Logout there may
// be IDs that had ended before: over is how their tombstones are treated.
func (m *Manager) mark(ctx context.Context, st *state, d draft, session id, over string) error {
	mark := handle([]byte(session.field))
	for _, n := range d.named {
		how, mode := steps[n.what][save], endMark
		if how == drop {
			mode = over
		}
		a, err := m.records.end(ctx, n.id, mode, revision{}, mark)
		if err != nil {
			return err
		}
		if a.outcome == refused && !(how == start && m.records.stays(n.id, a.there)) && !marked(a.there, mark) {
			m.lose(ctx, st, d, "")
			return ErrEnded
		}
	}
	return nil
}

// overtake leaves a tombstone at the IDs that the cookies named, for a Login: late answers of
// requests that carry these set no cookie. A mark of this request's own stays, so that
// Finish can go on with what a Commit has begun if the Login fails.
func (m *Manager) overtake(ctx context.Context, d draft) error {
	for _, n := range d.named {
		if d.fresh && d.record != nil {
			mark := handle([]byte(d.record.id.field))
			a, err := m.records.end(ctx, n.id, endMark, revision{}, mark)
			if err != nil {
				return err
			}
			if a.outcome != refused || marked(a.there, mark) {
				continue
			}
		}
		// A session of a user that this server cannot read ends by it.
		if _, err := m.records.endBy(ctx, m.records.redis, n.id, endReplace, revision{}, handle{}, told{kind: LoggedOut}); err != nil {
			return err
		}
	}
	return nil
}
