// Package profilemodel has the histories of random work on package profile, from four servers with
// delays and deaths, judged by porcupine: per ID they must be those of one register. The same judge
// must catch caches that are made in the usual ways.
package profilemodel
