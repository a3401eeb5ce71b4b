//go:build !linux

package redistest

import "errors"

func (p *process) moveClock(func(offset *int64)) error {
	return errors.New("redistest: clocks can be moved on Linux only")
}
