// The runner `go`: what a good engineer would write in Go with gorilla/websocket and redigo. A goroutine for each
// connection reads, one writes to Redis all that waits and flushes once, another reads Redis's answers.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"log"
	"os"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/gorilla/websocket"
)

const (
	waiting   = 65536            // messages between the readers and the writer, and answers that are not read yet
	batch     = 1024             // messages of one flush at most
	pingEvery = 20 * time.Second // as Bybit recommends
)

type message struct {
	channel string
	text    []byte
}

var kinds = [][2]string{
	{"stream:bybit_orderbook", "orderbook.50."},
	{"stream:bybit_trades", "publicTrade."},
	{"stream:bybit_ticker", "tickers."},
	{"stream:bybit_liquidations", "allLiquidation."},
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// read hands every message of one connection to the writer.
func read(dialer *websocket.Dialer, channel string, topics []string, out chan<- message) {
	conn, _, err := dialer.Dial(os.Getenv("BENCH_URL")+"/v5/public/linear", nil)
	must(err)
	must(conn.WriteJSON(map[string]any{"op": "subscribe", "args": topics}))
	go func() {
		for range time.Tick(pingEvery) {
			must(conn.WriteJSON(map[string]string{"op": "ping"}))
		}
	}()
	for {
		_, text, err := conn.ReadMessage()
		must(err)
		if len(text) > 2 && text[2] == 't' { // {"topic": all else is an acknowledgement
			out <- message{channel, text}
		}
	}
}

// write sends what waits, with one flush for all of it, and tells the reader of answers how many are to come.
func write(conn redis.Conn, in <-chan message, sent chan<- int) {
	for first := range in {
		must(conn.Send("PUBLISH", first.channel, first.text))
		count := 1
	drain:
		for ; count < batch; count++ {
			select {
			case next := <-in:
				must(conn.Send("PUBLISH", next.channel, next.text))
			default:
				break drain
			}
		}
		must(conn.Flush())
		sent <- count
	}
}

func main() {
	authority, err := os.ReadFile(os.Getenv("SSL_CERT_FILE"))
	must(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	dialer := &websocket.Dialer{TLSClientConfig: &tls.Config{RootCAs: pool}, ReadBufferSize: 65536}

	conn, err := redis.Dial("tcp", os.Getenv("REDIS_HOST")+":"+os.Getenv("REDIS_PORT"))
	must(err)
	var groups [][]string
	must(json.Unmarshal([]byte(os.Getenv("BENCH_GROUPS")), &groups))
	messages, sent := make(chan message, waiting), make(chan int, waiting)
	for _, symbols := range groups {
		for _, kind := range kinds {
			topics := []string{}
			for _, symbol := range symbols {
				topics = append(topics, kind[1]+symbol)
			}
			go read(dialer, kind[0], topics, messages)
		}
	}
	go write(conn, messages, sent)
	for count := range sent {
		for ; count > 0; count-- {
			_, err := conn.Receive()
			must(err)
		}
	}
}
