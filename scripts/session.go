package scripts

import _ "embed"

// The scripts of sessions. Each has one key, the hash of the session's owner.
var (
	SessionCreate = New(sessionCreate) // session/create.lua
	SessionSave   = New(sessionSave)   // session/save.lua
	SessionRotate = New(sessionRotate) // session/rotate.lua
	SessionRetire = New(sessionRetire) // session/retire.lua
	SessionEnd    = New(sessionEnd)    // session/end.lua
	SessionSweep  = New(sessionSweep)  // session/sweep.lua
	SessionHeads  = New(sessionHeads)  // session/heads.lua
	SessionRead   = New(sessionRead)   // session/read.lua
	SessionTime   = New(sessionTime)   // session/time.lua
)

var (
	//go:embed session/create.lua
	sessionCreate string
	//go:embed session/save.lua
	sessionSave string
	//go:embed session/rotate.lua
	sessionRotate string
	//go:embed session/retire.lua
	sessionRetire string
	//go:embed session/end.lua
	sessionEnd string
	//go:embed session/sweep.lua
	sessionSweep string
	//go:embed session/heads.lua
	sessionHeads string
	//go:embed session/read.lua
	sessionRead string
	//go:embed session/time.lua
	sessionTime string
)
