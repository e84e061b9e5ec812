// Web is a web server that knows nothing of kbroker: it answers on the port of $WEB,
// with 503 while there is a file "sick" in its directory. It takes $LATE to begin.
package main

import (
	"log"
	"net/http"
	"os"
	"time"
)

func main() {
	if late, err := time.ParseDuration(os.Getenv("LATE")); err == nil {
		<-time.After(late)
	}
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("WEB"), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if _, err := os.Stat("sick"); err == nil {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})))
}
