package redistest

import (
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// moveClock lets move change the offset of the server's clock, in microseconds. It maps the
// file because the server must never see half a write.
func (p *process) moveClock(move func(offset *int64)) error {
	f, err := os.OpenFile(clockFile(p.dir), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("redistest: clock of %s: %w", p.addr(), err)
	}
	defer f.Close()
	mem, err := syscall.Mmap(int(f.Fd()), 0, 16, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("redistest: clock of %s: %w", p.addr(), err)
	}
	defer syscall.Munmap(mem)
	cell := (*[2]int64)(unsafe.Pointer(&mem[0]))
	if atomic.LoadInt64(&cell[1]) == 0 {
		return fmt.Errorf("redistest: clock of %s: redis-server did not preload clock.so:\n%s", p.addr(), p.log())
	}
	move(&cell[0])
	return nil
}
