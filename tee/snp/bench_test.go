package snp

import "testing"

func BenchmarkParseEvidence(b *testing.B) {
	e, err := NewEvidence(vector(b, "test-report.bin"), []Certificate{{Type: CertVCEK, Data: vector(b, "test-vcek.der")}})
	if err != nil {
		b.Fatal(err)
	}
	data, err := e.JSON()
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseEvidence(data); err != nil {
			b.Fatal(err)
		}
	}
}
