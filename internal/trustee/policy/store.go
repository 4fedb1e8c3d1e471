package policy

import (
	"context"
	"strconv"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
)

// requestStore is a read-only OPA store whose document travels in the
// transaction. So a prepared query, which is tied to one store, serves
// concurrent requests with different data and without a lock.
type requestStore struct {
	storage.TriggersNotSupported
	storage.WritesNotSupported
}

type requestTxn struct{ data ast.Value }

// newTxn brings the document into Rego's form once, so that reading it costs
// no conversion.
func newTxn(data map[string]any) (requestTxn, error) {
	if len(data) == 0 {
		return requestTxn{}, nil
	}
	v, err := ast.InterfaceToValue(data)
	return requestTxn{v}, err
}

func (requestTxn) ID() uint64 { return 0 }

func (requestStore) NewTransaction(context.Context, ...storage.TransactionParams) (storage.Transaction, error) {
	return requestTxn{}, nil
}
func (requestStore) Commit(context.Context, storage.Transaction) error { return nil }
func (requestStore) Abort(context.Context, storage.Transaction)        {}
func (requestStore) Truncate(context.Context, storage.Transaction, storage.TransactionParams, storage.Iterator) error {
	return &storage.Error{Code: storage.WritesNotSupportedErr, Message: "read-only"}
}

// The store holds no policies; preparing a query asks all the same.

func (requestStore) ListPolicies(context.Context, storage.Transaction) ([]string, error) {
	return nil, nil
}

func (requestStore) GetPolicy(_ context.Context, _ storage.Transaction, id string) ([]byte, error) {
	return nil, &storage.Error{Code: storage.NotFoundErr, Message: id}
}

func (requestStore) UpsertPolicy(context.Context, storage.Transaction, string, []byte) error {
	return &storage.Error{Code: storage.WritesNotSupportedErr, Message: "read-only"}
}

func (requestStore) DeletePolicy(context.Context, storage.Transaction, string) error {
	return &storage.Error{Code: storage.WritesNotSupportedErr, Message: "read-only"}
}

func (requestStore) Read(_ context.Context, txn storage.Transaction, path storage.Path) (any, error) {
	t, _ := txn.(requestTxn)
	doc := t.data
	if doc == nil {
		doc = ast.NewObject()
	}
	for _, key := range path {
		var next *ast.Term
		switch d := doc.(type) {
		case ast.Object:
			next = d.Get(ast.StringTerm(key))
		case *ast.Array: // OPA asks for elements by their decimal index
			if i, ok := index(key, d.Len()); ok {
				next = d.Elem(i)
			}
		}
		if next == nil {
			return nil, &storage.Error{Code: storage.NotFoundErr, Message: path.String() + ": does not exist"}
		}
		doc = next.Value
	}
	return doc, nil
}

func index(key string, n int) (int, bool) {
	i, err := strconv.Atoi(key)
	return i, err == nil && i >= 0 && i < n && strconv.Itoa(i) == key
}
