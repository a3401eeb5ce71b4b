package events

// FirstPause is for tests that do not wait that long.
var FirstPause = &firstPause
