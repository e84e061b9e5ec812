package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"
)

// chunkBytes is about how long a chunk is: it ends at the next white space.
const chunkBytes = 4 << 10

// chunk is a piece of a file and how many words it has, counted here by other
// code than the service's.
type chunk struct {
	text  []byte
	words int
}

// readChunks splits all files below dir with that suffix.
func readChunks(dir, suffix string) ([]chunk, error) {
	if dir == "" {
		out, err := exec.Command("go", "env", "GOROOT").Output()
		if err != nil {
			return nil, fmt.Errorf("where is the Go installation? name a folder with -dir: %w", err)
		}
		dir = filepath.Join(strings.TrimSpace(string(out)), "src", "net")
	}
	var chunks []chunk
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.HasSuffix(path, suffix) {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, piece := range split(text, chunkBytes) {
			n, err := countWords(piece)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			chunks = append(chunks, chunk{piece, n})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(chunks) == 0 {
		return nil, errors.New("no text in " + dir)
	}
	return chunks, nil
}

// split cuts text at white space into pieces of at least size bytes (the last
// one may be shorter): no word is cut, and joined they are the text again.
func split(text []byte, size int) [][]byte {
	var pieces [][]byte
	for len(text) > size {
		end := bytes.IndexFunc(text[size:], unicode.IsSpace)
		if end < 0 {
			break
		}
		end += size
		_, width := utf8.DecodeRune(text[end:])
		pieces = append(pieces, text[:end+width])
		text = text[end+width:]
	}
	if len(text) > 0 {
		pieces = append(pieces, text)
	}
	return pieces
}

func countWords(text []byte) (int, error) {
	s := bufio.NewScanner(bytes.NewReader(text))
	s.Buffer(nil, len(text)+1)
	s.Split(bufio.ScanWords)
	n := 0
	for s.Scan() {
		n++
	}
	return n, s.Err()
}
