package collateraltest

import (
	"net/http"
	"strconv"
	"time"
)

// lie answers wrongly where it is told to. done: the answer is written. Lies
// about content have changed body's place by then, and return status 200 here.
func lie(w http.ResponseWriter, r *http.Request, l Lie, body []byte) (status int, page string, done bool) {
	flush := func() {
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
	}
	switch l {
	case HTML:
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write([]byte("<!DOCTYPE html><html><body>Please log in.</body></html>"))
	case Garbage:
		_, _ = w.Write([]byte("\x30\x82\x01\x00 this is none of it"))
	case Truncated:
		_, _ = w.Write(body[:len(body)/2])
	case Twice:
		_, _ = w.Write(append(append([]byte{}, body...), body...))
	case Endless:
		block := make([]byte, 64<<10)
		for {
			if _, err := w.Write(block); err != nil {
				return 0, "", true
			}
		}
	case Cut:
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body[:len(body)/2])
		flush()
		abort()
	case Reset:
		abort()
	case Drip:
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		for _, c := range body {
			if _, err := w.Write([]byte{c}); err != nil {
				break
			}
			flush()
			if !pause(r, time.Second) {
				break
			}
		}
	case Redirect:
		http.Redirect(w, r, "http://collateral.example/elsewhere", http.StatusFound)
	case Circle:
		http.Redirect(w, r, r.URL.RequestURI(), http.StatusFound)
	case NotFound:
		return http.StatusNotFound, "no such thing", false
	case Broken:
		return http.StatusInternalServerError, "broken", false
	case Forbidden:
		return http.StatusForbidden, "forbidden", false
	case Overloaded:
		return http.StatusServiceUnavailable, "overloaded", false
	case Silent:
		<-r.Context().Done()
	default:
		return http.StatusOK, "", false
	}
	return 0, "", true
}

// abort ends the connection, as net/http wants it.
func abort() { panic(http.ErrAbortHandler) }
