package store

import (
	"errors"
	"time"
)

type Finished struct {
	Session string
	Token   string
	Expires time.Time
}

var (
	ErrUsed        = errors.New("used already")
	ErrUnavailable = errors.New("the database is unavailable")
)
