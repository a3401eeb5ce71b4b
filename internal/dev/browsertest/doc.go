// Package browsertest has a real browser use what the handlers of Gatehouse send: cookies, caching,
// forms, and the console. `make test` installs Chromium; GATEHOUSE_TEST_BROWSER=off goes without.
package browsertest
