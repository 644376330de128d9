// Attaches and detaches with Debian's golang-gopkg-freddierice-go-losetup.v1-dev.
package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	losetup "gopkg.in/freddierice/go-losetup.v1"
)

func cycle(path string, inode uint64) int64 {
	start := time.Now()
	device, err := losetup.Attach(path, 0, false)
	attached := time.Since(start)
	if err != nil {
		return -1
	}
	// Attach does not report that another process has taken the device, and Detach would
	// detach its file. This check is not included in the time.
	info, err := device.GetInfo()
	if err != nil || info.INode != inode {
		return -1
	}
	start = time.Now()
	if err := device.Detach(); err != nil {
		return -1
	}
	return (attached + time.Since(start)).Nanoseconds()
}

func main() {
	path := os.Args[1]
	var stat syscall.Stat_t
	if err := syscall.Stat(path, &stat); err != nil {
		panic(err)
	}
	for {
		var count int
		if _, err := fmt.Scan(&count); err != nil {
			return
		}
		answers := make([]string, count)
		for i := range answers {
			answers[i] = fmt.Sprint(cycle(path, stat.Ino))
		}
		fmt.Println(strings.Join(answers, " "))
	}
}
