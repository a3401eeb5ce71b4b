//go:build race

package redistest

// RaceDetector reports whether the test is built with the race detector, under which all is
// several times slower.
const RaceDetector = true
