// Package routertest tests package middleware with modules that its users have
// and it must not depend on: chi, and coder/websocket.
package routertest
