package session

// What stands at an ID, and what a request wants of it, decide what is done. The table
// below says so once; load.go, begin.go, commit.go, rotate.go, login.go and end.go follow it.

// standing is what stands at an ID.
type standing uint8

const (
	nothing    standing = iota // when loading: no field, or one whose time or Grace has passed
	live                       // a record of the revision that the request knows
	changed                    // a record of another revision
	rotated                    // a tombstone in its Grace that leads to the next ID
	ended                      // a tombstone in its Grace that leads nowhere
	gone                       // a record was loaded, and now there is nothing
	unreadable                 // when loading: a record that this server cannot open, or one that other configured lives keep
)

// want is what a request wants of its session.
type want uint8

const (
	save want = iota // values, facts, or a use
	rotate
	logIn // a new ID without grace
	end
)

// step is what is done.
type step uint8

const (
	write  step = iota // on the condition that the revision still stands
	merge              // with what others wrote; then again
	follow             // to where the ID leads; then again
	bury               // leave a tombstone; then go on with a new ID, if one is wanted
	start              // a new ID, unless a tombstone has come; what stands here stays for servers that can read it
	drop               // nothing is saved, and no cookie is sent
	done               // there is nothing to do
)

var steps = [...][4]step{
	//           save    rotate  logIn   end
	live:       {write, write, bury, bury}, // logIn: at Finish, when the new record stands
	changed:    {merge, merge, merge, bury},
	rotated:    {follow, follow, follow, bury}, // end: with all that it leads to
	ended:      {drop, drop, bury, bury},       // end: the session may go on under the ID that took its place
	nothing:    {bury, done, bury, done},
	gone:       {drop, drop, bury, done},
	unreadable: {start, done, bury, bury},
}

// found is what stands at an ID, read.
type found struct {
	what   standing
	record *record // of live
	leads  []byte  // of rotated: to where, sealed
	reason Reason  // of ended, and of nothing: why what stood there ended, if others ended it
	beyond *id     // of unreadable: where it stands, if a rotated ID leads there
	// through are the rotated IDs that led to it, the first ones.
	through []id
}

// read reads what stands at an ID. Nil or empty raw is nothing.
func (s *records) read(at id, raw []byte, now int64, large func() ([]byte, error)) (found, error) {
	if len(raw) == 0 {
		return found{what: nothing}, nil
	}
	switch {
	case raw[0] == formatRecord:
		r, err := s.sealer.open(at, raw, large)
		switch {
		case err != nil:
			return found{what: unreadable}, err
		case s.keys.owns(r):
			switch {
			case now >= r.times.until:
				return found{what: nothing}, nil
			case s.over(r, now): // here; a server of a longer life has it still
				return found{what: unreadable}, nil
			}
			return found{what: live, record: r}, nil
		default:
			return found{what: unreadable}, errOwner
		}
	case (raw[0] == formatRotated || raw[0] == formatEnded) && len(raw) >= tombstoneLen:
		switch {
		case getTime(raw[2:]) <= now: // its Grace
			return found{what: nothing, reason: reasonOf(raw, now)}, nil
		case raw[0] == formatRotated:
			return found{what: rotated, leads: raw[tombstoneLen:]}, nil
		}
		return found{what: ended, reason: reasonOf(raw, now)}, nil
	}
	return found{what: unreadable}, errMalformed
}

// reasonOf returns the reason that a tombstone gives while it stands.
func reasonOf(raw []byte, now int64) Reason {
	if len(raw) <= tombstoneLen || raw[0] != formatEnded || getTime(raw[2+timeLen:]) <= now {
		return ""
	}
	return Reason(raw[tombstoneLen:])
}

// why is the reason for which a request's session turned out to be over.
func (f found) why() Reason {
	if f.what == gone {
		return Lost
	}
	return f.reason
}
