package stacktest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/gatehouse-go/gatehouse/middleware"
)

// refusedRPC is a RateLimit.Refused for Connect, gRPC and gRPC-Web: by their HTTP status clients
// would take a 429 for UNAVAILABLE, and a 400 for INTERNAL.
func refusedRPC(w http.ResponseWriter, r *http.Request, d middleware.Decision) {
	code := connect.CodeUnavailable
	switch d.Status {
	case http.StatusTooManyRequests:
		code = connect.CodeResourceExhausted
	case http.StatusBadRequest:
		code = connect.CodeInvalidArgument
	}
	_ = connect.NewErrorWriter().Write(w, r, connect.NewError(code, errors.New(strings.ToLower(http.StatusText(d.Status)))))
}

// refusals are what clients of RPCs see of the statuses that a RateLimit refuses with.
var refusals = []struct {
	name    string
	set     func(l *middleware.RateLimit)
	without connect.Code // without a Refused
	with    connect.Code // with refusedRPC
}{
	{"429", func(l *middleware.RateLimit) { l.Cost = func(*http.Request) int { return quota + 1 } }, connect.CodeUnavailable, connect.CodeResourceExhausted},
	{"400", func(l *middleware.RateLimit) { l.Key = middleware.ByHeader("X-Api-Key") }, connect.CodeInternal, connect.CodeInvalidArgument},
	{"503", func(l *middleware.RateLimit) { l.Cost = func(*http.Request) int { return -1 } }, connect.CodeUnavailable, connect.CodeUnavailable},
}

// Handlers of Connect behind sessions and limits, for its three protocols.
func TestConnect(t *testing.T) {
	const procedure = "/counter.v1.Counter/Count"
	type client = connect.Client[emptypb.Empty, wrapperspb.Int64Value]
	build := func(t *testing.T, http2 bool, k *kit, opts ...connect.ClientOption) *client {
		mux := http.NewServeMux()
		mux.Handle(procedure, connect.NewUnaryHandler(procedure, func(ctx context.Context, _ *connect.Request[emptypb.Empty]) (*connect.Response[wrapperspb.Int64Value], error) {
			n := k.sessions.GetInt(ctx, "n") + 1
			k.sessions.Put(ctx, "n", n)
			return connect.NewResponse(wrapperspb.Int64(int64(n))), nil
		}))
		s := serve(t, http2, k.all(mux))
		return connect.NewClient[emptypb.Empty, wrapperspb.Int64Value](s.client, s.URL+procedure, opts...)
	}
	call := func(t *testing.T, c *client) (*connect.Response[wrapperspb.Int64Value], error) {
		return c.CallUnary(t.Context(), connect.NewRequest(&emptypb.Empty{}))
	}
	for _, tc := range []struct {
		name  string
		http2 bool
		opts  []connect.ClientOption
	}{
		{"Connect over HTTP/1.1", false, nil},
		{"Connect over HTTP/2", true, nil},
		{"Connect in JSON", true, []connect.ClientOption{connect.WithProtoJSON()}},
		{"gRPC", true, []connect.ClientOption{connect.WithGRPC()}},
		{"gRPC-Web", true, []connect.ClientOption{connect.WithGRPCWeb()}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := newKit(t)
			k.limit.Refused = refusedRPC
			c := build(t, tc.http2, k, tc.opts...)
			for n := 1; n <= quota; n++ {
				res, err := call(t, c)
				if err != nil || res.Msg.Value != int64(n) {
					t.Fatalf("call %d: %v, %v", n, res, err)
				}
				figures(t, fmt.Sprint("call ", n), res.Header(), quota, quota-n)
				if set := len(res.Header()["Set-Cookie"]); n == 1 && (set != 1 || res.Header().Get("Cache-Control") != "no-store") || n > 1 && set != 0 {
					t.Errorf("call %d: %v", n, res.Header())
				}
			}
			_, err := call(t, c)
			e, ok := errors.AsType[*connect.Error](err)
			if !ok || e.Code() != connect.CodeResourceExhausted || e.Message() != "too many requests" {
				t.Fatalf("the limit is used up: %v", err)
			}
			figures(t, "the limit is used up", e.Meta(), quota, 0)
			if e.Meta().Get("Retry-After") == "" || e.Meta().Get("Cache-Control") != "no-store" {
				t.Errorf("the limit is used up: %v", e.Meta())
			}
		})
		for _, refusal := range refusals {
			for _, with := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/with Refused %t", tc.name, refusal.name, with), func(t *testing.T) {
					k := newKit(t)
					refusal.set(&k.limit)
					want := refusal.without
					if with {
						k.limit.Refused, want = refusedRPC, refusal.with
					}
					if _, err := call(t, build(t, tc.http2, k, tc.opts...)); connect.CodeOf(err) != want {
						t.Errorf("%v, want %v", err, want)
					}
				})
			}
		}
	}
}

// grpc-go's server behind sessions and limits, by its ServeHTTP.
func serveGRPC(t *testing.T, k *kit) (healthpb.HealthClient, *health.Server) {
	srv := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		n := k.sessions.GetInt(ctx, "n") + 1
		k.sessions.Put(ctx, "n", n)
		_ = grpc.SetTrailer(ctx, metadata.Pairs("n", fmt.Sprint(n)))
		return next(ctx, req)
	}))
	service := health.NewServer()
	healthpb.RegisterHealthServer(srv, service)
	s := serve(t, true, k.all(srv))
	config := s.client.Transport.(*http.Transport).TLSClientConfig
	conn := must(grpc.NewClient(s.Listener.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(config))))
	t.Cleanup(func() { conn.Close() })
	return healthpb.NewHealthClient(conn), service
}

func TestGRPC(t *testing.T) {
	k := newKit(t)
	k.limit.Refused = refusedRPC
	client, _ := serveGRPC(t, k)
	cookie := ""
	check := func() (h http.Header, n []string, err error) {
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "cookie", cookie), time.Minute)
		defer cancel()
		var header, trailer metadata.MD
		res, err := client.Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Header(&header), grpc.Trailer(&trailer))
		if err == nil && res.Status != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("%v", res)
		}
		h = http.Header{}
		for name, values := range header {
			h[http.CanonicalHeaderKey(name)] = values
		}
		return h, trailer["n"], err
	}
	for n := 1; n <= quota; n++ {
		h, count, err := check()
		if err != nil || len(count) != 1 || count[0] != fmt.Sprint(n) {
			t.Fatalf("call %d: %v, %v", n, count, err)
		}
		figures(t, fmt.Sprint("call ", n), h, quota, quota-n)
		if set := h["Set-Cookie"]; n > 1 && len(set) > 0 {
			t.Errorf("call %d sets %q", n, set)
		} else if n == 1 {
			if len(set) != 1 || h.Get("Cache-Control") != "no-store" {
				t.Fatalf("call 1: %v", h)
			}
			cookie, _, _ = strings.Cut(set[0], ";")
		}
	}
	h, _, err := check()
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("the limit is used up: %v", err)
	}
	figures(t, "the limit is used up", h, quota, 0)
	if h.Get("Retry-After") == "" || h.Get("Cache-Control") != "no-store" {
		t.Errorf("the limit is used up: %v", h)
	}
	for _, refusal := range refusals {
		for _, with := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/with Refused %t", refusal.name, with), func(t *testing.T) {
				k := newKit(t)
				refusal.set(&k.limit)
				want := refusal.without
				if with {
					k.limit.Refused, want = refusedRPC, refusal.with
				}
				client, _ := serveGRPC(t, k)
				if _, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{}); status.Code(err) != codes.Code(want) {
					t.Errorf("%v, want %v", err, want)
				}
			})
		}
	}
}

// Messages of a stream arrive as they are sent, and it holds its place until it ends.
func TestGRPCStream(t *testing.T) {
	k := newKit(t)
	k.places.Refused = refusedRPC
	client, service := serveGRPC(t, k)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	streaming, end := context.WithCancel(ctx)
	stream := must(client.Watch(streaming, &healthpb.HealthCheckRequest{}))
	for _, want := range []healthpb.HealthCheckResponse_ServingStatus{1, 2, 1} {
		service.SetServingStatus("", want)
		if res, err := stream.Recv(); err != nil || res.Status != want {
			t.Fatalf("%v, %v, want %v", res, err, want)
		}
		if _, err := client.Check(ctx, &healthpb.HealthCheckRequest{}); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("beside the stream: %v", err)
		}
	}
	end()
	for {
		if _, err := client.Check(ctx, &healthpb.HealthCheckRequest{}); err == nil {
			break
		} else if status.Code(err) != codes.ResourceExhausted {
			t.Fatalf("after the stream: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
