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

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: ## Start the demo (ADDR, default :8080; REDIS_URL, default an embedded miniredis)
	cd examples && go run ./demo

.PHONY: test
test: redis postgres ## Run all tests on a real Redis; GATEHOUSE_TEST_REDIS=off: on miniredis alone
	@[ -n "$(RACE)" ] || echo "No C compiler: testing without the race detector." >&2
	@failed=; for m in $(MODULES); do \
		echo "== test $$m"; \
		(cd $$m && go test $(RACE) -shuffle=on -parallel $(PARALLEL) -timeout 15m ./...) || failed="$$failed $$m"; \
	done; [ -z "$$failed" ] || { echo "FAILED:$$failed" >&2; exit 1; }

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

.PHONY: bench
bench: redis ## Measure Gatehouse beside its peers
	cd internal/dev/bench && go run .

.PHONY: bench-quick
bench-quick: redis ## The same in short, to see that it runs
	cd internal/dev/bench && go run . -quick

.PHONY: cover
cover: redis ## Write coverage.out and coverage.html of the root module
	go test -coverpkg=./... -coverprofile=coverage.out -timeout 10m ./...
	go tool cover -html=coverage.out -o coverage.html

# On Debian the package also starts a service on port 6379. The tests never use it.
.PHONY: redis
redis:
	@[ "$(GATEHOUSE_TEST_REDIS)" != off ] || exit 0; \
	command -v redis-server >/dev/null && exit 0; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	echo "redis-server is missing, and the tests start their own. Installing it with the package manager" >&2; \
	echo "(GATEHOUSE_TEST_REDIS=off goes without)." >&2; \
	if command -v apt-get >/dev/null; then \
		$$sudo apt-get update && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends redis-server; \
	elif command -v dnf >/dev/null; then \
		$$sudo dnf install -y redis || $$sudo dnf install -y valkey-compat-redis; \
	elif command -v apk >/dev/null; then \
		$$sudo apk add redis; \
	elif command -v brew >/dev/null; then \
		brew install redis; \
	else \
		echo "No apt-get, dnf, apk or brew here: please install redis-server yourself." >&2; exit 1; \
	fi; \
	command -v redis-server >/dev/null || { echo "There is still no redis-server in PATH." >&2; exit 1; }

# On Debian the package also starts a service on port 5432, and leaves initdb out of PATH, as does
# Homebrew. The tests never use the service.
.PHONY: postgres
postgres:
	@[ "$(GATEHOUSE_TEST_POSTGRES)" != off ] || exit 0; \
	found() { command -v initdb || ls -d /usr/lib/postgresql/*/bin/initdb /opt/homebrew/opt/postgresql@*/bin/initdb /usr/local/opt/postgresql@*/bin/initdb 2>/dev/null | grep .; } >/dev/null; \
	found && exit 0; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	echo "PostgreSQL is missing, and a test of examples/audit starts its own. Installing it with the package manager" >&2; \
	echo "(GATEHOUSE_TEST_POSTGRES=off goes without)." >&2; \
	if command -v apt-get >/dev/null; then \
		$$sudo apt-get update && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql; \
	elif command -v dnf >/dev/null; then \
		$$sudo dnf install -y postgresql-server; \
	elif command -v apk >/dev/null; then \
		$$sudo apk add postgresql; \
	elif command -v brew >/dev/null; then \
		brew install postgresql@17; \
	else \
		echo "No apt-get, dnf, apk or brew here: please install PostgreSQL yourself." >&2; exit 1; \
	fi; \
	found || { echo "There is still no initdb." >&2; exit 1; }
