// Package stacktest tests package middleware together with the modules that its users mount
// around it: in both orders, over real servers, and compared with each module alone.
package stacktest
