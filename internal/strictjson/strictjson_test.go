package strictjson_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/strictjson"
)

type inner struct {
	Port uint16     `json:"port"`
	Addr netip.Addr `json:"addr,omitzero"`
}

type embedded struct {
	Shared string `json:"shared"`
}

type doc struct {
	embedded
	Name    string           `json:"name"`
	Age     *int             `json:"age"`
	On      bool             `json:"on"`
	List    []inner          `json:"list"`
	Map     map[string]inner `json:"map"`
	Fixed   [3]byte          `json:"fixed"`
	Bytes   []byte           `json:"bytes"`
	Any     any              `json:"any"`
	Raw     json.RawMessage  `json:"raw"`
	Quoted  int              `json:"quoted,string"`
	Skipped string           `json:"-"`
	Plain   string
	hidden  string
}

func TestDecodeAccepts(t *testing.T) {
	t.Parallel()
	in := ` {"name":"ä\u00e4\ud83d\ude00","age":-3,"on":true,"list":[{"port":80,"addr":"::1"}],"map":{"a b":{"port":1}},
	"fixed":[1,2,3],"bytes":"AQI=","any":[1.5e3,{"x":null}],"raw":{"y":[]},"quoted":"7","Plain":"p","shared":"s"} `
	var got doc
	if err := strictjson.Decode([]byte(in), &got, strictjson.Limits{}); err != nil {
		t.Fatal(err)
	}
	var want doc
	if err := json.Unmarshal([]byte(in), &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got.Name != "ää😀" || got.Shared != "s" || got.hidden != "" {
		t.Errorf("got %+v", got)
	}
	for _, null := range []string{`{"age":null}`, `{"list":null}`, `{"map":null}`, `{"any":null}`, `{"raw":null}`, `{"bytes":[1,2]}`} {
		if err := strictjson.Decode([]byte(null), &got, strictjson.Limits{}); err != nil {
			t.Errorf("%s: %v", null, err)
		}
	}
	if got.Name != "" {
		t.Error("a second Decode merged into the first value")
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ in, path, problem string }{
		"empty":                 {``, "", "ends where a value"},
		"trailing value":        {`{} {}`, "", "after the end"},
		"trailing garbage":      {`{}x`, "", "after the end"},
		"unknown field":         {`{"nam":""}`, "nam", "unknown field; known here: Plain, age"},
		"unknown deep":          {`{"list":[{},{"prt":1}]}`, "list[1].prt", "unknown field"},
		"letter case":           {`{"Name":""}`, "Name", `letter case matters: "name"`},
		"skipped field":         {`{"Skipped":""}`, "Skipped", "unknown field"},
		"unexported field":      {`{"hidden":""}`, "hidden", "unknown field"},
		"embedded by type name": {`{"embedded":{}}`, "embedded", "unknown field"},
		"duplicate":             {`{"name":"a","name":"a"}`, "name", "occurs twice"},
		"duplicate by escape":   {`{"name":"a","n\u0061me":"a"}`, "name", "occurs twice"},
		"duplicate in map":      {`{"map":{"a b":{},"a b":{}}}`, `map["a b"]`, "occurs twice"},
		"duplicate in any":      {`{"any":[{"x":1,"x":2}]}`, "any[0].x", "occurs twice"},
		"duplicate in raw":      {`{"raw":{"x":1,"x":2}}`, "raw.x", "occurs twice"},
		"null scalar":           {`{"name":null}`, "name", "null is not allowed"},
		"null struct":           {`null`, "", "null is not allowed"},
		"null array":            {`{"fixed":null}`, "fixed", "null is not allowed"},
		"number for string":     {`{"name":1}`, "name", "a number is not allowed here, expected a string"},
		"string for number":     {`{"age":"1"}`, "age", "expected a number (int)"},
		"number for text":       {`{"list":[{"addr":1}]}`, "list[0].addr", "expected a string"},
		"array for object":      {`{"map":[]}`, "map", "expected an object"},
		"object for array":      {`{"list":{}}`, "list", "expected an array"},
		"bool for string":       {`{"name":true}`, "name", "true is not allowed"},
		"out of range":          {`{"list":[{"port":65536}]}`, "list[0].port", "does not fit in uint16"},
		"fraction for int":      {`{"age":1.5}`, "age", "does not fit"},
		"short fixed array":     {`{"fixed":[1,2]}`, "fixed", "has 2 elements, expected 3"},
		"long fixed array":      {`{"fixed":[1,2,3,4]}`, "fixed", "more than 3"},
		"invalid UTF-8":         {"{\"name\":\"a\xff\"}", "name", "not UTF-8"},
		"invalid UTF-8 name":    {"{\"a\xff\":1}", "", "not UTF-8"},
		"high surrogate":        {`{"name":"\ud800"}`, "name", "surrogate"},
		"two high surrogates":   {`{"name":"\ud800\ud800"}`, "name", "surrogate"},
		"low surrogate":         {`{"name":"\udc00"}`, "name", "surrogate"},
		"short escape":          {`{"name":"\u12"}`, "name", "four hexadecimal"},
		"signed escape":         {`{"name":"\u+123"}`, "name", "four hexadecimal"},
		"bad escape":            {`{"name":"\x"}`, "name", "unknown escape"},
		"control character":     {"{\"name\":\"a\nb\"}", "name", "control character"},
		"byte order mark":       {"\ufeff{}", "", "cannot begin"},
		"NaN":                   {`{"any":NaN}`, "any", "cannot begin"},
		"Infinity":              {`{"any":-Infinity}`, "any", "not a number"},
		"leading zero":          {`{"any":01}`, "", "expected , or }"},
		"hex":                   {`{"any":0x1}`, "", "expected , or }"},
		"lone minus":            {`{"any":-}`, "any", "not a number"},
		"open fraction":         {`{"any":1.}`, "any", "not a number"},
		"open exponent":         {`{"any":1e}`, "any", "not a number"},
		"bad literal":           {`{"on":tru}`, "on", "not a JSON value"},
		"trailing comma":        {`{"list":[{},]}`, "list[1]", "cannot begin"},
		"trailing comma object": {`{"on":true,}`, "", "expected a name"},
		"comment":               {`{/**/}`, "", "expected a name"},
		"single quotes":         {`{'name':1}`, "", "expected a name"},
		"no colon":              {`{"name" "x"}`, "name", "expected :"},
		"cut string":            {`{"name":"x`, "name", "ends inside a string"},
		"cut escape":            {`{"name":"x\`, "name", "ends inside a string"},
		"cut object":            {`{"name":"x"`, "", "expected , or }"},
		"too deep":              {`{"any":[[[[[]]]]]}`, "any[0][0][0][0]", "deeper than the limit of 5"},
		"too long":              {`{"name":"` + strings.Repeat("x", 200) + `"}`, "", "limit of 200 bytes"},
		"bad base64":            {`{"bytes":"!"}`, "", "illegal base64"},
		"bad address":           {`{"list":[{"addr":"1.2.3"}]}`, "list[0].addr", "not a valid netip.Addr"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := doc{Name: "before"}
			err := strictjson.Decode([]byte(tt.in), &got, strictjson.Limits{Bytes: 200, Depth: 5})
			if err == nil {
				t.Fatalf("accepted as %+v", got)
			}
			if got.Name != "before" {
				t.Error("the value was changed although an error was returned")
			}
			if !strings.Contains(err.Error(), tt.problem) {
				t.Errorf("error %q does not say %q", err, tt.problem)
			}
			if e, ok := errors.AsType[*strictjson.Error](err); ok && e.Path != tt.path {
				t.Errorf("path %q, want %q (%v)", e.Path, tt.path, err)
			}
		})
	}
}

// strict is a type that decodes itself, as union types do.
type strict struct{ In inner }

func (s *strict) UnmarshalJSON(b []byte) error {
	return strictjson.Decode(b, &s.In, strictjson.Limits{})
}

func TestDecodeNestedUnmarshaler(t *testing.T) {
	t.Parallel()
	var m map[string]strict
	if err := strictjson.Decode([]byte(`{"a":{"port":3}}`), &m, strictjson.Limits{}); err != nil || m["a"].In.Port != 3 {
		t.Errorf("got %+v, %v", m, err)
	}
	var deep []struct{ M map[string]strict }
	err := strictjson.Decode([]byte(`[{"M":{"a b":{"port":"x"}}}]`), &deep, strictjson.Limits{})
	if e, ok := errors.AsType[*strictjson.Error](err); !ok || e.Path != `[0].M["a b"].port` {
		t.Errorf("got %v", err)
	}
	err = strictjson.Decode([]byte(`{"a":{"Port":3}}`), &m, strictjson.Limits{})
	if e, ok := errors.AsType[*strictjson.Error](err); !ok || e.Path != "a.Port" {
		t.Errorf("got %v", err)
	}
}

func TestDecodeNeedsPointer(t *testing.T) {
	t.Parallel()
	if strictjson.Decode([]byte(`{}`), doc{}, strictjson.Limits{}) == nil || strictjson.Decode([]byte(`{}`), (*doc)(nil), strictjson.Limits{}) == nil {
		t.Error("accepted")
	}
}

func TestErrorsDoNotQuoteValues(t *testing.T) {
	t.Parallel()
	for _, in := range []string{`{"age":"hunter2"}`, `{"name":"hunter2`, `{"age":987654321987654321987654321}`, `{"name":["hunter2"]}`} {
		var d doc
		err := strictjson.Decode([]byte(in), &d, strictjson.Limits{})
		if err == nil || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "98765") {
			t.Errorf("%s: %v", in, err)
		}
	}
}

// TestArraysCostNoAllocationPerElement: evidence is arrays of numbers.
func TestArraysCostNoAllocationPerElement(t *testing.T) {
	in := []byte("[" + strings.Repeat("255, ", 9_999) + "0]")
	var got [10_000]byte
	// encoding/json itself allocates one value of the target and little else.
	if n := testing.AllocsPerRun(5, func() {
		if err := strictjson.Decode(in, &got, strictjson.Limits{}); err != nil {
			t.Fatal(err)
		}
	}); n > 50 {
		t.Errorf("%v allocations for an array of 10000 numbers", n)
	}
}

func BenchmarkDecodeNumbers(b *testing.B) {
	in := []byte("[" + strings.Repeat("255, ", 9_999) + "0]")
	var got [10_000]byte
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		if err := strictjson.Decode(in, &got, strictjson.Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{}`, `{"name":"x","any":[1,2,{"a":null}]}`, `{"fixed":[1,2,3]}`, `{"name":"\ud83d\ude00"}`, `[`, `{"list":[{"port":1}]}`, "{\"name\":\"\xff\"}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var d doc
		if err := strictjson.Decode(data, &d, strictjson.Limits{Bytes: 4096, Depth: 8}); err == nil {
			if !json.Valid(data) {
				t.Errorf("accepted %q, which is not JSON", data)
			}
			out, err := json.Marshal(d)
			if err != nil {
				t.Fatal(err)
			}
			var again doc
			if err := strictjson.Decode(out, &again, strictjson.Limits{Bytes: 1 << 16, Depth: 8}); err != nil {
				t.Errorf("own encoding %q refused: %v", out, err)
			}
		}
		// Without a type, exactly the grammar, text and duplicates are judged.
		var v any
		if err := strictjson.Decode(data, &v, strictjson.Limits{}); err == nil && !json.Valid(data) {
			t.Errorf("accepted %q, which is not JSON", data)
		}
	})
}
