package scripts

import _ "embed"

// The scripts of the session store.
var (
	SessionCommit = New(sessionCommit) // session_commit.lua
	SessionTouch  = New(sessionTouch)  // session_touch.lua
	SessionEnd    = New(sessionEnd)    // session_end.lua
)

var (
	//go:embed session_commit.lua
	sessionCommit string
	//go:embed session_touch.lua
	sessionTouch string
	//go:embed session_end.lua
	sessionEnd string
)
