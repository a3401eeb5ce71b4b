# Every go.mod below here is a module; each target that concerns code goes through all of them.
MODULES = $(shell find . -name go.mod -not -path '*/testdata/*' -not -path '*/node_modules/*' -exec dirname {} \; | sort)

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME ?= 10s

# The race detector needs cgo, which Go leaves off where there is no C compiler.
RACE = $(shell if [ "$$(go env CGO_ENABLED)" = 1 ] || [ "$(CI)" = true ]; then echo -race; fi)

# It has each process sleep for a second at its end; the tests start hundreds.
export GORACE ?= atexit_sleep_ms=50

# The tests that are parallel mostly wait. Go would run as many at a time as there are CPUs.
PARALLEL ?= 4

# Tests the module $$1; $$2 goes to go test: the package to begin with, which takes the longest, or -p 1
# for the examples, which wait for Redis as briefly as in use. The race detector is left out for the
# benchmark, which is slow enough, for what drives a browser, and for what counts allocations.
TEST = test_module() { \
	race=$(RACE); case "$$1" in */bench | */browsertest) race= ;; esac; \
	echo "== test $$1"; \
	(cd "$$1" && go test $$race -shuffle=on -parallel $(PARALLEL) -timeout 15m $$2 ./...) || { echo "FAILED: $$1"; return 1; }; \
}

ALLOCATIONS = echo "== test allocations"; go test -run 'Alloc|TenThousandRules' ./session ./ratelimit ./middleware ./internal/codec || { echo "FAILED: allocations"; false; }

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: ## Start the demo (ADDR, default localhost:8080; REDIS_URL, default an embedded miniredis)
	cd examples && go run ./demo

.PHONY: test
test: redis postgres prometheus chromium ## Run all tests on a real Redis; GATEHOUSE_TEST_REDIS=off: on miniredis alone
	@[ -n "$(RACE)" ] || echo "No C compiler: testing without the race detector." >&2
	@$(TEST); out=$$(mktemp) && trap 'rm -f "$$out"' EXIT && trap 'trap "" INT TERM; kill 0; exit 130' INT TERM || exit 1; \
	rc=0; test_module . ./session || rc=1; \
	(rc=0; for m in $(filter-out . ./examples,$(MODULES)); do test_module $$m || rc=1; done; \
		[ -z "$(RACE)" ] || { $(ALLOCATIONS); } || rc=1; exit $$rc) > "$$out" 2>&1 & others=$$!; \
	test_module ./examples '-p 1' || rc=1; wait $$others || rc=1; cat "$$out"; exit $$rc

.PHONY: lint
lint: ## Check formatting, go vet, staticcheck, and that go.mod and go.sum are tidy
	@unformatted=$$(gofmt -l .) || exit 1; [ -z "$$unformatted" ] || { echo "gofmt -w these:" >&2; echo "$$unformatted" >&2; exit 1; }
	@failed=; for m in $(MODULES); do \
		echo "== lint $$m"; \
		(cd $$m && rc=0; \
			go mod tidy -diff || rc=1; \
			go vet ./... || rc=1; \
			go run $(STATICCHECK) ./... || rc=1; \
			exit $$rc) || failed="$$failed $$m"; \
	done; [ -z "$$failed" ] || { echo "FAILED:$$failed" >&2; exit 1; }

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (default 10s)
	@for m in $(MODULES); do \
		(cd $$m && found=$$(go test -list '^Fuzz' ./...) && echo "$$found" | \
			awk '/^Fuzz/ { f[n++] = $$1 } /^ok/ { for (i = 0; i < n; i++) print $$2, f[i]; n = 0 }' | \
			while read -r pkg target; do \
				echo "== fuzz $$pkg $$target"; \
				go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$pkg" </dev/null || exit 1; \
			done) || exit 1; \
	done

.PHONY: tag
tag: ## Tag the modules that users download together (VERSION=v0.1.0)
	@echo "$(VERSION)" | grep -qE '^v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.]+)?$$' || { echo "make tag VERSION=v0.1.0" >&2; exit 1; }
	@[ -z "$$(git status --porcelain)" ] || { echo "There are uncommitted changes." >&2; exit 1; }
	@grep -qF "## [$(VERSION:v%=%)]" CHANGELOG.md || { echo "CHANGELOG.md has no $(VERSION)." >&2; exit 1; }
	@for m in middleware/ginadapter middleware/otelgatehouse; do \
		grep -qE "gatehouse-go/gatehouse $(VERSION)$$" $$m/go.mod || { echo "$$m/go.mod does not require $(VERSION) of the root." >&2; exit 1; }; \
	done
	git tag -a $(VERSION) -m $(VERSION)
	git tag -a middleware/ginadapter/$(VERSION) -m $(VERSION)
	git tag -a middleware/otelgatehouse/$(VERSION) -m $(VERSION)
	@echo "git push origin $(VERSION) middleware/ginadapter/$(VERSION) middleware/otelgatehouse/$(VERSION)"

.PHONY: bench
bench: redis ## Measure Gatehouse beside its peers
	cd internal/dev/bench && go run .

.PHONY: bench-quick
bench-quick: redis ## The same in short, to see that it runs
	cd internal/dev/bench && go run . -quick

.PHONY: screenshots
screenshots: redis chromium ## Take the pictures of docs/images anew
	dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
		(cd internal/dev/browsertest && GATEHOUSE_TEST_SCREENSHOTS=$$dir go test -count=1 -run 'Console|DemoOn' .) && \
		for name in console-explain-light console-explain-dark console-account-light console-overview-phone-dark demo-limits demo-light demo-dark demo-phone-dark; do cp $$dir/$$name.png docs/images/ || exit 1; done

.PHONY: plots
plots: redis ## Draw the plots of docs/choosing-a-limiter.md anew
	go run ./internal/dev/plots

.PHONY: cover
cover: redis ## Write coverage.out and coverage.html of the root module
	go test -coverpkg=./... -coverprofile=coverage.out -timeout 10m ./...
	go tool cover -html=coverage.out -o coverage.html

# On Debian the packages also start services, which the tests never use.
.PHONY: redis
redis:
	@internal/dev/need redis-server "the tests start their own" GATEHOUSE_TEST_REDIS \
		'command -v redis-server' redis-server 'redis|valkey-compat-redis' redis redis

# Debian and Homebrew leave initdb out of PATH.
.PHONY: postgres
postgres:
	@internal/dev/need PostgreSQL "a test of examples/audit starts its own" GATEHOUSE_TEST_POSTGRES \
		'command -v initdb || ls -d /usr/lib/postgresql/*/bin/initdb /opt/homebrew/opt/postgresql@*/bin/initdb /usr/local/opt/postgresql@*/bin/initdb | grep .' \
		postgresql postgresql-server postgresql postgresql@17

.PHONY: prometheus
prometheus:
	@internal/dev/need Prometheus "a test of examples/observability starts its own" GATEHOUSE_TEST_PROMETHEUS \
		'command -v prometheus && command -v promtool' prometheus golang-github-prometheus prometheus prometheus

.PHONY: chromium
chromium:
	@internal/dev/need Chromium "the tests of internal/dev/browsertest drive it" GATEHOUSE_TEST_BROWSER \
		'command -v chromium || command -v chromium-browser || command -v google-chrome || command -v google-chrome-stable || ls /Applications/Chromium.app' \
		chromium chromium chromium '--cask chromium'
