package packet

import "time"

// insisting bounds how many errors are to be repeated. One that is not repeated is
// answered when the first packet comes again, a second later.
var insisting = make(chan struct{}, 1024)

// Insist gives the error that refuses a first packet of TCP, and gives it again. The
// kernel only notes such an error, and goes on trying, while the program's connect is
// on its way to where it waits (tcp_v4_err and tcp_v6_err: sock_owned_by_user). A
// connection that has ended knows no more of it.
func Insist(give func()) {
	give()
	select {
	case insisting <- struct{}{}:
	default:
		return
	}
	time.AfterFunc(5*time.Millisecond, func() {
		give()
		time.AfterFunc(75*time.Millisecond, func() {
			give()
			<-insisting
		})
	})
}
