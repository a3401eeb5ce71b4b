package session_test

import (
	"bytes"
	"context"
	"encoding/gob"
	"fmt"
	"log"
	"time"

	"github.com/alexedwards/scs/redisstore"
	"github.com/alexedwards/scs/v2"
	"github.com/alicebob/miniredis/v2"
	"github.com/gomodule/redigo/redis"
	goredis "github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/session"
)

func Example() {
	server, err := miniredis.Run() // a Redis in process, for the example
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	client := goredis.NewClient(&goredis.Options{Addr: server.Addr()})
	defer client.Close()

	sessions, err := session.New(client, session.Config{
		Secrets:   [][]byte{[]byte("from a file that only the service can read")},
		KeySecret: []byte("another of its kind, that never changes"),
	})
	if err != nil {
		log.Fatal(err)
	}

	// Package middleware does this around each handler.
	request := func(cookie string, handler func(ctx context.Context)) session.Outcome {
		ctx, err := sessions.Load(context.Background(), cookie)
		if err != nil {
			log.Fatal(err)
		}
		handler(ctx)
		outcome, err := sessions.Finish(ctx)
		if err != nil {
			log.Fatal(err)
		}
		return outcome
	}

	const theme session.Key[string] = "theme"
	login := request("", func(ctx context.Context) {
		theme.Put(ctx, sessions, "dark")
		if err := sessions.Login(ctx, "ann"); err != nil {
			log.Fatal(err)
		}
	})
	request(login.Value, func(ctx context.Context) {
		fmt.Println(sessions.UserID(ctx), "likes it", theme.Get(ctx, sessions))
	})
	logout := request(login.Value, func(ctx context.Context) {
		if err := sessions.Logout(ctx); err != nil {
			log.Fatal(err)
		}
	})
	fmt.Println("delete the cookie:", logout.Action == session.CookieDelete)
	request(login.Value, func(ctx context.Context) {
		fmt.Printf("afterwards the cookie stands for %q\n", sessions.UserID(ctx))
	})
	// Output:
	// ann likes it dark
	// delete the cookie: true
	// afterwards the cookie stands for ""
}

// A service moves from scs/redisstore (scs/goredisstore alike) without logging anybody
// out. Each session is copied at its first use, and stays in the old store for servers
// that are not there yet; when the longest lifetime of the old ones has passed, Legacy
// can go.
func ExampleConfig_legacy() {
	server, err := miniredis.Run()
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	pool := &redis.Pool{Dial: func() (redis.Conn, error) { return redis.Dial("tcp", server.Addr()) }}
	defer pool.Close()

	// Until yesterday, somebody logged in like this.
	old := scs.New()
	old.Store = redisstore.New(pool)
	ctx, _ := old.Load(context.Background(), "")
	old.Put(ctx, "userID", "ann")
	old.Put(ctx, "cart", []string{"book"})
	cookie, _, err := old.Commit(ctx)
	if err != nil {
		log.Fatal(err)
	}

	// From today on. In middleware.Sessions, LegacyCookie is the old cookie's name, scs's
	// being "session". Types that were registered for the old sessions by gob.Register
	// stay so.
	gob.Register(time.Time{})
	client := goredis.NewClient(&goredis.Options{Addr: server.Addr()})
	defer client.Close()
	sessions, err := session.New(client, session.Config{
		Secrets:   [][]byte{bytes.Repeat([]byte("secret"), 8)},
		KeySecret: bytes.Repeat([]byte("forever"), 8),
		Legacy: session.Legacy{
			Store: redisstore.New(pool),
			User: func(values map[string]any) string {
				user, _ := values["userID"].(string)
				return user
			},
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, err = sessions.LoadLegacy(context.Background(), cookie)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(sessions.UserID(ctx), sessions.Get(ctx, "cart"))
	outcome, err := sessions.Finish(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("a new cookie:", outcome.Action == session.CookieSet && outcome.Value != cookie)
	_, found, _ := redisstore.New(pool).Find(cookie)
	fmt.Println("still in the old store:", found)
	// Output:
	// ann [book]
	// a new cookie: true
	// still in the old store: true
}

// A flash message is shown once, by the page that a form leads to: Put before the redirect, Pop
// on the page.
func ExampleKey_Pop() {
	server, err := miniredis.Run() // a Redis in process, for the example
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	client := goredis.NewClient(&goredis.Options{Addr: server.Addr()})
	defer client.Close()
	sessions, err := session.New(client, session.Config{})
	if err != nil {
		log.Fatal(err)
	}
	ctx, err := sessions.Load(context.Background()) // middleware does it
	if err != nil {
		log.Fatal(err)
	}

	const flash session.Key[string] = "flash"
	flash.Put(ctx, sessions, "saved")
	for range 2 {
		fmt.Printf("%q\n", flash.Pop(ctx, sessions))
	}
	// Output:
	// "saved"
	// ""
}
