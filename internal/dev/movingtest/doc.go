// Package movingtest has the code of docs/moving.md, and tests old and new side by side on one Redis:
// what the page says of other modules holds for the versions in go.mod.
package movingtest
