package profile_test

import (
	"context"
	"fmt"
	"log"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/session/profile"
)

// User is what the database knows.
type User struct{ Name, Role string }

// A user's role in every request, without asking the database each time: a change by Update is
// seen by all servers with their next Get.
func Example() {
	server, err := miniredis.Run() // stands for your Redis
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer client.Close()
	ctx := context.Background()

	rows := map[string]User{"42": {"Ann", "admin"}} // stands for your database
	users, err := profile.New(client, "user", func(ctx context.Context, id string) (User, error) {
		fmt.Println("the database is asked")
		u, ok := rows[id]
		if !ok {
			return User{}, profile.ErrNotFound
		}
		return u, nil
	}, profile.Config{})
	if err != nil {
		log.Fatal(err)
	}
	for range 2 {
		u, err := users.Get(ctx, "42")
		fmt.Println(u.Role, err)
	}
	_, err = users.Update(ctx, "42", func(context.Context) (User, error) {
		rows["42"] = User{"Ann", "reader"}
		return rows["42"], nil
	})
	fmt.Println("updated", err)
	u, err := users.Get(ctx, "42")
	fmt.Println(u.Role, err)
	// Output:
	// the database is asked
	// admin <nil>
	// admin <nil>
	// updated <nil>
	// reader <nil>
}
