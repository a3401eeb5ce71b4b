package main

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/alexedwards/scs/goredisstore"
	"github.com/alexedwards/scs/redisstore"
	"github.com/alexedwards/scs/v2"
	"github.com/boj/redistore"
	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/session"
)

// The ordinary session: who it is, and what a shop keeps about a visitor. Its values take
// about 300 bytes.
const (
	userKey   = "userID" // where a library keeps none itself
	nameKey   = "name"
	csrfKey   = "csrf"
	cartKey   = "cart"
	visitsKey = "visits"
	itemsKey  = "items"
	seenKey   = "seen"
	adminKey  = "admin"
	themeKey  = "theme"
)

var (
	ordinaryCSRF = strings.Repeat("x9Kq_2f-", 6)[:43] // 32 random bytes in base64url
	ordinaryCart = []string{"sku-184467", "sku-440737", "sku-095516", "sku-155213", "sku-709551"}
	ordinarySeen = time.Date(2025, time.March, 14, 15, 9, 26, 535897932, time.UTC)
)

var (
	secrets   = [][]byte{bytes.Repeat([]byte("s"), 32)}
	keySecret = bytes.Repeat([]byte("k"), 32)
)

// sessionKit is a session library and an application that does with it what the rows want. The
// application's handlers answer 500 if the session does not hold what it should.
type sessionKit struct {
	values values // of libraries that have such methods
	wrap   wrapper
	login  http.HandlerFunc // a new ID for the user that subjectField names, then the ordinary session
	renew  http.HandlerFunc // a new ID for the same user, nothing else
	read   http.HandlerFunc // reads all values
	write  http.HandlerFunc // reads the user and one value, and changes that
	byUser key
}

type sessionLibrary struct {
	name   string
	kind   kind
	make   func(e *env, idle time.Duration) (sessionKit, error) // idle timeout; 0: none
	cached bool                                                 // keeps sessions in process
}

var (
	scsRedigo = sessionLibrary{name: "scs + redisstore", kind: peer,
		make: func(e *env, idle time.Duration) (sessionKit, error) {
			return scsKit(redisstore.New(e.redigo()), idle), nil
		}}
	scsGoRedis = sessionLibrary{name: "scs + goredisstore", kind: peer,
		make: func(e *env, idle time.Duration) (sessionKit, error) {
			return scsKit(goredisstore.New(e.goredis()), idle), nil
		}}
	gorilla = sessionLibrary{name: "gorilla/sessions + redistore", kind: peer, make: newGorilla}

	gatehousePlain = sessionLibrary{name: "Gatehouse", kind: ours,
		make: func(e *env, idle time.Duration) (sessionKit, error) {
			return newGatehouse(e.goredis(), idle, nil)
		}}
	gatehouseSealed = sessionLibrary{name: "Gatehouse, signed and sealed", kind: ours,
		make: func(e *env, idle time.Duration) (sessionKit, error) {
			return newGatehouse(e.goredis(), idle, secrets)
		}}
	// go-redis caches only database 0, and looks for invalidations on each idle connection every
	// few milliseconds.
	gatehouseCached = sessionLibrary{name: "Gatehouse, client-side cache", kind: ours, cached: true,
		make: func(e *env, idle time.Duration) (sessionKit, error) {
			client := redis.NewClient(&redis.Options{
				Addr: e.server.addr, DB: e.db, PoolSize: e.inFlight, Protocol: 3,
				// All sessions fit, as they should in production.
				ClientSideCache: redis.NewLocalCache(redis.CacheConfig{MaxEntries: 2 * e.subjects}),
			})
			e.onClose(func() { client.Close() })
			return newGatehouse(client, idle, nil)
		}}
)

// values are the methods that scs and Gatehouse have in common.
type values interface {
	Put(ctx context.Context, key string, val any)
	Get(ctx context.Context, key string) any
	GetString(ctx context.Context, key string) string
	GetBool(ctx context.Context, key string) bool
	GetInt(ctx context.Context, key string) int
	GetTime(ctx context.Context, key string) time.Time
}

// valuesKit is the application over values. login gives the session a new ID.
func valuesKit(v values, wrap wrapper, user func(context.Context) string, login func(context.Context, string) error) sessionKit {
	renew := func(w http.ResponseWriter, r *http.Request) {
		if err := login(r.Context(), r.Header.Get(subjectField)); err != nil {
			fail(w, err)
			return
		}
		answer(w, r)
	}
	return sessionKit{
		values: v, wrap: wrap,
		renew: renew,
		login: func(w http.ResponseWriter, r *http.Request) {
			ctx := r.Context()
			v.Put(ctx, nameKey, "Ada Lovelace")
			v.Put(ctx, csrfKey, ordinaryCSRF)
			v.Put(ctx, cartKey, ordinaryCart)
			v.Put(ctx, visitsKey, 1)
			v.Put(ctx, itemsKey, len(ordinaryCart))
			v.Put(ctx, seenKey, ordinarySeen)
			v.Put(ctx, adminKey, true)
			v.Put(ctx, themeKey, "dark")
			renew(w, r)
		},
		read: func(w http.ResponseWriter, r *http.Request) {
			ctx := r.Context()
			cart, _ := v.Get(ctx, cartKey).([]string)
			if user(ctx) == "" || v.GetString(ctx, nameKey) == "" || v.GetString(ctx, csrfKey) != ordinaryCSRF ||
				v.GetInt(ctx, visitsKey) < 1 || v.GetInt(ctx, itemsKey) != len(cart) ||
				v.GetTime(ctx, seenKey).IsZero() || !v.GetBool(ctx, adminKey) || v.GetString(ctx, themeKey) != "dark" {
				fail(w, errSession)
				return
			}
			answer(w, r)
		},
		write: func(w http.ResponseWriter, r *http.Request) {
			ctx := r.Context()
			visits := v.GetInt(ctx, visitsKey)
			if user(ctx) == "" || visits < 1 {
				fail(w, errSession)
				return
			}
			v.Put(ctx, visitsKey, visits+1)
			answer(w, r)
		},
		byUser: key{theirs: func(r *http.Request) string { return user(r.Context()) }},
	}
}

var errSession = errors.New("not the session that it should be")

func fail(w http.ResponseWriter, err error) {
	http.Error(w, err.Error(), http.StatusInternalServerError)
}

func scsKit(store scs.Store, idle time.Duration) sessionKit {
	gob.Register(time.Time{})
	m := scs.New()
	m.Store, m.IdleTimeout = store, idle
	user := func(ctx context.Context) string { return m.GetString(ctx, userKey) }
	return valuesKit(m, m.LoadAndSave, user, func(ctx context.Context, user string) error {
		m.Put(ctx, userKey, user)
		return m.RenewToken(ctx)
	})
}

func newGatehouse(client *redis.Client, idle time.Duration, secrets [][]byte) (sessionKit, error) {
	if idle == 0 {
		idle = -1 // 0 would be the default, an hour
	}
	// As patient as its peers, should the machine be busy.
	cfg := session.Config{IdleTimeout: idle, Secrets: secrets, Timeout: 10 * time.Second}
	if len(secrets) > 0 {
		cfg.KeySecret = keySecret
	}
	m, err := session.New(client, cfg)
	if err != nil {
		return sessionKit{}, err
	}
	kit := valuesKit(m, wrapManager(m), m.UserID, func(ctx context.Context, user string) error { return m.Login(ctx, user) })
	kit.byUser.ours = middleware.ByUser(m)
	return kit, nil
}

func wrapManager(m *session.Manager) wrapper {
	return middleware.Sessions{Manager: m}.Handler
}

// newGorilla uses redistore as its README does, except that connections are not checked with a
// PING before each use, which it would lose by.
//
// With an idle timeout every request saves the session, since that is what moves its expiry. A
// login leaves the old ID valid: nothing in its API renews one, and emptying ID is what its users
// do.
func newGorilla(e *env, idle time.Duration) (sessionKit, error) {
	gob.Register(time.Time{})
	store, err := redistore.NewRediStoreWithPool(e.redigo(), secrets[0])
	if err != nil {
		return sessionKit{}, err
	}
	if idle > 0 {
		store.SetMaxAge(int(idle / time.Second))
	}
	const cookie = "session"
	handler := func(save bool, f func(*http.Request, *sessions.Session) bool) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			s, err := store.Get(r, cookie)
			if err != nil {
				fail(w, err)
				return
			}
			if !f(r, s) {
				fail(w, errSession)
				return
			}
			if save {
				if err := s.Save(r, w); err != nil {
					fail(w, err)
					return
				}
			}
			answer(w, r)
		}
	}
	renew := func(r *http.Request, s *sessions.Session) bool {
		s.Values[userKey] = r.Header.Get(subjectField)
		s.ID = ""
		return true
	}
	return sessionKit{
		wrap:  func(next http.Handler) http.Handler { return next },
		renew: handler(true, renew),
		login: handler(true, func(r *http.Request, s *sessions.Session) bool {
			s.Values[nameKey] = "Ada Lovelace"
			s.Values[csrfKey] = ordinaryCSRF
			s.Values[cartKey] = ordinaryCart
			s.Values[visitsKey] = 1
			s.Values[itemsKey] = len(ordinaryCart)
			s.Values[seenKey] = ordinarySeen
			s.Values[adminKey] = true
			s.Values[themeKey] = "dark"
			return renew(r, s)
		}),
		read: handler(idle > 0, func(_ *http.Request, s *sessions.Session) bool {
			user, _ := s.Values[userKey].(string)
			name, _ := s.Values[nameKey].(string)
			cart, _ := s.Values[cartKey].([]string)
			visits, _ := s.Values[visitsKey].(int)
			seen, _ := s.Values[seenKey].(time.Time)
			return user != "" && name != "" && s.Values[csrfKey] == ordinaryCSRF && visits >= 1 &&
				s.Values[itemsKey] == len(cart) && !seen.IsZero() && s.Values[adminKey] == true && s.Values[themeKey] == "dark"
		}),
		write: handler(true, func(_ *http.Request, s *sessions.Session) bool {
			user, _ := s.Values[userKey].(string)
			visits, _ := s.Values[visitsKey].(int)
			s.Values[visitsKey] = visits + 1
			return user != "" && visits >= 1
		}),
		byUser: key{theirs: func(r *http.Request) string {
			s, err := store.Get(r, cookie)
			if err != nil {
				return ""
			}
			user, _ := s.Values[userKey].(string)
			return user
		}},
	}, nil
}

// loggedIn logs every subject in and returns the headers of their later requests.
func (e *env) loggedIn(kit sessionKit) ([]http.Header, error) {
	headers := subjects(e.subjects)
	err := e.each(kit.wrap(kit.login), headers, func(i int, r *response) error {
		cookie := cookieOf(r.header)
		if r.status != http.StatusOK || cookie == "" {
			return fmt.Errorf("login: status %d, cookie %q", r.status, cookie)
		}
		headers[i]["Cookie"] = []string{cookie}
		return nil
	})
	return headers, err
}

// sessionWork returns the entrants of a row about sessions. With follow each caller has sessions
// of its own and sends the cookies that it was given last.
func sessionWork(idle time.Duration, work func(sessionKit) http.HandlerFunc, follow bool, libraries ...sessionLibrary) []entrant {
	var entrants []entrant
	for _, lib := range libraries {
		entrants = append(entrants, entrant{name: lib.name, kind: lib.kind, inDatabase0: lib.cached, restless: lib.cached,
			enter: func(e *env) ([]caller, error) {
				kit, err := lib.make(e, idle)
				if err != nil {
					return nil, err
				}
				headers, err := e.loggedIn(kit)
				if err != nil {
					return nil, err
				}
				h := kit.wrap(work(kit))
				if lib.cached {
					// The first two reads of each session belong to the set-up: one past the cache, as the
					// session was just written, and one that fills it.
					if err := e.spend(h, headers, 2); err != nil {
						return nil, err
					}
				}
				return e.callers(h, headers, follow), nil
			}})
	}
	return entrants
}
