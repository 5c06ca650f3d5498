// Command netload is both ends of the network benchmark: it answers, and it measures
// how long answers take, how many connections a second there are, and holds flows
// open. Throughput is iperf3's.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "netload:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 2 && args[0] == "serve" {
		return serve(args[1])
	}
	if len(args) != 3 {
		return errors.New("usage: netload serve ADDRESS | rr|crr|rate|hold ADDRESS N")
	}
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	switch args[0] {
	case "rr":
		return roundTrips(args[1], n, false)
	case "crr":
		return roundTrips(args[1], n, true)
	case "rate":
		return rate(args[1], time.Duration(n)*time.Second)
	case "hold":
		return hold(args[1], n)
	}
	return fmt.Errorf("no measurement %q", args[0])
}

func serve(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			b := make([]byte, 1)
			for {
				if _, err := io.ReadFull(c, b); err != nil {
					return
				}
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		}()
	}
}

// roundTrips times a byte there and back, with a connection for each or one for all.
func roundTrips(address string, n int, connect bool) error {
	var c net.Conn
	var err error
	times := make([]time.Duration, 0, n)
	b := make([]byte, 1)
	for range n {
		began := time.Now()
		if c == nil {
			if c, err = net.Dial("tcp", address); err != nil {
				return err
			}
		}
		if _, err := c.Write(b); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
		if connect {
			_ = c.Close()
			c = nil
		}
		times = append(times, time.Since(began))
	}
	slices.Sort(times)
	fmt.Printf("%.0f %.0f\n", float64(times[n/2].Nanoseconds())/1e3, float64(times[n*99/100].Nanoseconds())/1e3)
	return nil
}

// rate counts whole connections: made, one byte there and back, closed. What fails is
// counted as well.
func rate(address string, d time.Duration) error {
	const clients = 32
	var done, failed atomic.Int64
	end := time.Now().Add(d)
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			b := make([]byte, 1)
			for time.Now().Before(end) {
				c, err := net.Dial("tcp", address)
				if err == nil {
					// Without a FIN_WAIT the ports of this end are free at once.
					_ = c.(*net.TCPConn).SetLinger(0)
					if _, err = c.Write(b); err == nil {
						_, err = io.ReadFull(c, b)
					}
					_ = c.Close()
				}
				if err != nil {
					failed.Add(1)
					continue
				}
				done.Add(1)
			}
		})
	}
	all.Wait()
	fmt.Printf("%.0f %d\n", float64(done.Load())/d.Seconds(), failed.Load())
	return nil
}

// hold opens flows, uses each once, says so, and waits for a line.
func hold(address string, n int) error {
	conns := make([]net.Conn, 0, n)
	b := make([]byte, 1)
	for range n {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return fmt.Errorf("after %d flows: %w", len(conns), err)
		}
		if _, err := c.Write(b); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
		conns = append(conns, c)
	}
	fmt.Println("held")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n') // its end will do
	for _, c := range conns {
		_ = c.Close()
	}
	return nil
}
