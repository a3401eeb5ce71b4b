package main

import (
	"testing"

	"github.com/gatehouse-go/gatehouse/examples/internal/servicetest"
	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

func TestService(t *testing.T) { servicetest.Run(t, newHandler) }
