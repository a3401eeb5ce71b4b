package middleware

// ForgetProxied has PeerIP write its line again.
func ForgetProxied() { proxied.Store(false) }
