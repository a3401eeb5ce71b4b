package main

import (
	"net/http"

	"github.com/go-chi/chi/v5"
)

// chiRoutes is routes with chi.
func (s *service) chiRoutes() http.Handler {
	r := chi.NewRouter()
	r.Get("/login", s.loginPage)
	r.With(s.byAddress.Handler, s.byAccount.Handler).Post("/login", s.login)
	r.Post("/logout", s.logout)
	r.Group(func(r chi.Router) {
		r.Use(s.loggedIn.Handler)
		r.Get("/", s.devices)
		r.Get("/confirm", s.confirmPage)
		r.With(s.byUser.Handler).Post("/confirm", s.confirm)
	})
	r.Group(func(r chi.Router) {
		r.Use(s.justNow.Handler)
		r.Post("/end", s.end)
		r.Post("/end-others", s.endOthers)
		r.Post("/password", s.changePassword)
	})
	return s.mount(r)
}
