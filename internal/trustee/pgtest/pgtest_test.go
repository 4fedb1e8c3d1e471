package pgtest

import (
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestServer(t *testing.T) {
	t.Parallel()
	s := Start(t, Setting("max_connections=20"))
	ctx := t.Context()
	u := s.URL("a \"b\"")
	count := func() (n int) {
		c, err := pgx.Connect(ctx, u)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close(ctx)
		if _, err := c.Exec(ctx, "CREATE TABLE IF NOT EXISTS x (n INT)"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Exec(ctx, "INSERT INTO x VALUES (1)"); err != nil {
			t.Fatal(err)
		}
		if err := c.QueryRow(ctx, "SELECT COUNT(*) FROM x").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for i, m := range []Mode{Fast, Immediate, Fast} {
		if n := count(); n != i+1 {
			t.Errorf("%d rows, expected %d", n, i+1)
		}
		s.Restart(m)
	}
	s.Stop(Fast)
	if c, err := pgx.Connect(ctx, u); err == nil {
		_ = c.Close(ctx)
		t.Error("a stopped server answers")
	}
	s.Resume()
}

func TestShared(t *testing.T) {
	t.Parallel()
	var shared Shared
	seen := make(map[string]bool)
	t.Run("users", func(t *testing.T) {
		for range 2 {
			u := shared.URL(t)
			c, err := pgx.Connect(t.Context(), u)
			if err != nil {
				t.Fatal(err)
			}
			_ = c.Close(t.Context())
			if seen[u] {
				t.Errorf("%s given out twice", u)
			}
			seen[u] = true
		}
	})
	if shared.server != nil {
		t.Error("the server runs on after its last user")
	}
}
