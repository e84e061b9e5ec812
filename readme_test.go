package kbroker_test

import (
	"os"
	"strings"
	"testing"
)

// TestReadmeShowsTheExample: what a new user reads first is what is built.
func TestReadmeShowsTheExample(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"examples/hello/main.go", "examples/hello/app.yaml"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(readme), strings.TrimSpace(string(text))) {
			t.Errorf("README.md does not show %s as it is", path)
		}
	}
}
