package main

import (
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/gatehouse-go/gatehouse/middleware/ginadapter"
)

// ginRoutes is routes with gin.
func (s *service) ginRoutes() http.Handler {
	r := gin.New()
	r.GET("/login", gin.WrapF(s.loginPage))
	r.POST("/login", ginadapter.Wrap(s.byAddress), ginadapter.Wrap(s.byAccount), gin.WrapF(s.login))
	r.POST("/logout", gin.WrapF(s.logout))

	users := r.Group("/", ginadapter.Wrap(s.loggedIn))
	users.GET("/", gin.WrapF(s.devices))
	users.GET("/confirm", gin.WrapF(s.confirmPage))
	users.POST("/confirm", ginadapter.Wrap(s.byUser), gin.WrapF(s.confirm))

	fresh := r.Group("/", ginadapter.Wrap(s.justNow))
	fresh.POST("/end", gin.WrapF(s.end))
	fresh.POST("/end-others", gin.WrapF(s.endOthers))
	fresh.POST("/password", gin.WrapF(s.changePassword))
	return s.mount(r)
}
