package main

import (
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"maps"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/pquerna/otp"
	"github.com/pquerna/otp/totp"
)

var (
	errUser     = errors.New("there is no such user")
	errPassword = errors.New("the password is too short")
	errToken    = errors.New("the token is unknown, used or too old")
)

const (
	rounds    = 600_000          // of PBKDF2 with SHA-256, as OWASP's Password Storage Cheat Sheet has it
	tokenLife = 15 * time.Minute // of the link in a mail
)

// DB stands for the database of an application. It is safe for concurrent use.
type DB struct {
	now    func() time.Time
	rounds int

	mu     sync.Mutex
	users  map[string]User  // by ID
	codes  map[string]int64 // the time step of the last TOTP code that was used, by user
	tokens map[[sha256.Size]byte]token
}

// User is a row of the database. The zero value has no password that is right.
type User struct {
	ID, Email  string
	TOTP       string // secret, in Base32; "": the password alone logs in
	Devices    int    // on which the user may be logged in
	salt, hash []byte
	rounds     int
}

// token is the right to set a new password.
type token struct {
	user    string
	expires time.Time
}

// NewDB returns an empty database.
func NewDB(now func() time.Time, rounds int) *DB {
	return &DB{
		now: now, rounds: rounds,
		users: make(map[string]User), codes: make(map[string]int64), tokens: make(map[[sha256.Size]byte]token),
	}
}

// Add adds a user.
func (db *DB) Add(ctx context.Context, u User, password string) error {
	db.mu.Lock()
	db.users[u.ID] = u
	db.mu.Unlock()
	return db.SetPassword(ctx, u.ID, password)
}

// User returns a user, or errUser.
func (db *DB) User(_ context.Context, id string) (User, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	u, ok := db.users[id]
	if !ok {
		return User{rounds: db.rounds}, errUser
	}
	return u, nil
}

// ByEmail returns the user of an address, or errUser.
func (db *DB) ByEmail(_ context.Context, email string) (User, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	for _, u := range db.users {
		if u.Email == email {
			return u, nil
		}
	}
	return User{rounds: db.rounds}, errUser
}

// SetPassword changes a password, and makes all tokens of the user useless. The error is errPassword or errUser.
func (db *DB) SetPassword(_ context.Context, id, password string) error {
	if utf8.RuneCountInString(password) < 8 {
		return errPassword
	}
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails
	hash, err := pbkdf2.Key(sha256.New, password, salt, db.rounds, sha256.Size)
	if err != nil {
		return err
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	u, ok := db.users[id]
	if !ok {
		return errUser
	}
	u.salt, u.hash, u.rounds = salt, hash, db.rounds
	db.users[id] = u
	maps.DeleteFunc(db.tokens, func(_ [sha256.Size]byte, t token) bool { return t.user == id })
	return nil
}

// Check reports whether the password is right. It takes as long for the user that ByEmail
// returns with errUser.
func (u User) Check(password string) bool {
	hash, err := pbkdf2.Key(sha256.New, password, u.salt, u.rounds, sha256.Size)
	return err == nil && subtle.ConstantTimeCompare(hash, u.hash) == 1
}

// CheckTOTP reports whether a code is right: that of now, of the half minute before or of the
// next. Each passes once, and none that is older than the last one that did.
func (db *DB) CheckTOTP(u User, code string) bool {
	const period = 30
	now := db.now()
	for at := now.Add(-period * time.Second); !at.After(now.Add(period * time.Second)); at = at.Add(period * time.Second) {
		ok, err := totp.ValidateCustom(code, u.TOTP, at, totp.ValidateOpts{Period: period, Digits: otp.DigitsSix})
		if err != nil || !ok {
			continue
		}
		db.mu.Lock()
		defer db.mu.Unlock()
		if n := at.Unix() / period; n > db.codes[u.ID] {
			db.codes[u.ID] = n
			return true
		}
		return false
	}
	return false
}

// NewToken returns a token that lets its holder set a new password for a user, once. As with
// passwords, the database has only its hash.
func (db *DB) NewToken(id string) string {
	raw, now := rand.Text(), db.now()
	db.mu.Lock()
	defer db.mu.Unlock()
	maps.DeleteFunc(db.tokens, func(_ [sha256.Size]byte, t token) bool { return now.After(t.expires) })
	db.tokens[sha256.Sum256([]byte(raw))] = token{id, now.Add(tokenLife)}
	return raw
}

// TakeToken uses a token up, or returns errToken.
func (db *DB) TakeToken(raw string) (token, error) {
	hash := sha256.Sum256([]byte(raw))
	db.mu.Lock()
	defer db.mu.Unlock()
	t, ok := db.tokens[hash]
	delete(db.tokens, hash)
	if !ok || db.now().After(t.expires) {
		return token{}, errToken
	}
	return t, nil
}

// ReturnToken makes a token usable again whose work could not be done.
func (db *DB) ReturnToken(raw string, t token) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.tokens[sha256.Sum256([]byte(raw))] = t
}
