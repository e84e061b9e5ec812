package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"

	"github.com/kbroker/kbroker/bench/child"
)

type counter = atomic.Int64

// Names of the stores that updates are compared with.
const (
	storeKV       = "kv"       // JetStream, three servers that sync always: compare-and-set
	storePostgres = "postgres" // one server, synchronous commit: upsert
	storeRedis    = "redis"    // one server, appendfsync always: SET
)

// storeBound is how long a store may take to come.
const storeBound = 30 * time.Second

// stores are the servers of others, in folders beside those of our own cluster: on the
// same disk.
type stores struct {
	dir     string
	servers []*server
	all     []Side
}

// server is a process.
type server struct {
	name string
	cmd  *exec.Cmd
	end  syscall.Signal // that ends it
}

func startStores(ctx context.Context, names []string) (s *stores, err error) {
	dir, err := os.MkdirTemp("", "kbroker-bench-stores-")
	if err != nil {
		return nil, err
	}
	s = &stores{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if err := os.Chmod(dir, 0o755); err != nil { // a store may have a user of its own
		return s, err
	}
	start := map[string]func(context.Context) (string, error){storeKV: s.startKV, storePostgres: s.startPostgres, storeRedis: s.startRedis}
	for _, name := range names {
		if start[name] == nil {
			return s, fmt.Errorf("-stores: %q, want some of %s, %s, %s", name, storeKV, storePostgres, storeRedis)
		}
		at, err := start[name](ctx)
		if err != nil {
			return s, fmt.Errorf("start %s: %w", name, err)
		}
		s.all = append(s.all, Side{Name: name, Peer: name, Cluster: Cluster{Servers: []string{at}}, Served: true})
	}
	return s, nil
}

func (s *stores) sides() []Side { return s.all }

func (s *stores) close() error {
	var all error
	for _, p := range s.servers {
		_ = p.cmd.Process.Signal(p.end) // it may have ended
		kill := time.AfterFunc(childGrace, func() { _ = p.cmd.Process.Kill() })
		if err := p.cmd.Wait(); err != nil && !kill.Stop() {
			all = errors.Join(all, fmt.Errorf("%s: %w", p.name, err))
		}
		kill.Stop()
	}
	return errors.Join(all, os.RemoveAll(s.dir))
}

// run starts a server in a folder of its own; its output is beside.
func (s *stores) run(name string, end syscall.Signal, as *syscall.Credential, program string, args ...string) error {
	out, err := os.Create(filepath.Join(s.dir, name+".log"))
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: as, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = childGrace
	if err := cmd.Start(); err != nil {
		return err
	}
	s.servers = append(s.servers, &server{name, cmd, end})
	return nil
}

// until polls a store until it answers.
func until(ctx context.Context, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, storeBound)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// natsServerRole is the word that makes this program a plain NATS server, of a
// configuration file.
const natsServerRole = "nats-server"

const kvConfig = `server_name: n%d
listen: 127.0.0.1:%d
jetstream: {store_dir: %q, sync_interval: always}
cluster: {name: bench, listen: 127.0.0.1:%d, routes: [%s]}
`

func (s *stores) startKV(ctx context.Context) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	var clients, routes [benchHosts]int
	var urls []string
	for i := range benchHosts {
		if clients[i], err = freePort(); err != nil {
			return "", err
		}
		if routes[i], err = freePort(); err != nil {
			return "", err
		}
		urls = append(urls, fmt.Sprintf("nats://127.0.0.1:%d", routes[i]))
	}
	for i := range benchHosts {
		name := fmt.Sprintf("nats-%d", i)
		file := filepath.Join(s.dir, name+".conf")
		config := fmt.Appendf(nil, kvConfig, i, clients[i], filepath.Join(s.dir, name), routes[i], strings.Join(urls, ","))
		if err := os.WriteFile(file, config, 0o600); err != nil {
			return "", err
		}
		if err := s.run(name, syscall.SIGTERM, nil, self, natsServerRole, file); err != nil {
			return "", err
		}
	}
	at := fmt.Sprintf("nats://127.0.0.1:%d", clients[0])
	return at, until(ctx, func(ctx context.Context) error {
		conn, err := nats.Connect(at)
		if err != nil {
			return err
		}
		defer conn.Close()
		js, err := jetstream.New(conn)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err = js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: kvBucket, Replicas: benchHosts})
		return err
	})
}

const kvBucket = "items"

func (s *stores) startPostgres(ctx context.Context) (string, error) {
	port, err := freePort()
	if err != nil {
		return "", err
	}
	var as *syscall.Credential
	data := filepath.Join(s.dir, "postgres")
	if err := os.Mkdir(data, 0o700); err != nil {
		return "", err
	}
	if os.Geteuid() == 0 { // it refuses to run as root
		u, err := user.Lookup("nobody")
		if err != nil {
			return "", err
		}
		uid, _ := strconv.Atoi(u.Uid) // numbers, on Linux
		gid, _ := strconv.Atoi(u.Gid)
		as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(data, uid, gid); err != nil {
			return "", err
		}
	}
	initdb := exec.CommandContext(ctx, "initdb", "-D", data, "-U", "bench", "-A", "trust", "-E", "UTF8")
	initdb.Dir, initdb.SysProcAttr = data, &syscall.SysProcAttr{Credential: as}
	if out, err := initdb.CombinedOutput(); err != nil {
		return "", fmt.Errorf("initdb: %w: %s", err, out)
	}
	err = s.run("postgres-log", syscall.SIGINT, as, "postgres", "-D", data, "-p", strconv.Itoa(port), "-k", "", "-h", "127.0.0.1",
		"-c", "synchronous_commit=on", "-c", "fsync=on", "-c", "max_connections=200")
	if err != nil {
		return "", err
	}
	at := fmt.Sprintf("postgres://bench@127.0.0.1:%d/postgres?sslmode=disable", port)
	return at, until(ctx, func(ctx context.Context) error {
		c, err := pgx.Connect(ctx, at)
		if err != nil {
			return err
		}
		defer c.Close(ctx)
		_, err = c.Exec(ctx, "CREATE TABLE IF NOT EXISTS item (id int PRIMARY KEY, writes bigint NOT NULL, data bytea NOT NULL)")
		return err
	})
}

func (s *stores) startRedis(ctx context.Context) (string, error) {
	port, err := freePort()
	if err != nil {
		return "", err
	}
	data := filepath.Join(s.dir, "redis")
	if err := os.Mkdir(data, 0o700); err != nil {
		return "", err
	}
	err = s.run("redis-log", syscall.SIGTERM, nil, "redis-server", "--port", strconv.Itoa(port), "--bind", "127.0.0.1",
		"--dir", data, "--appendonly", "yes", "--appendfsync", "always", "--save", "")
	if err != nil {
		return "", err
	}
	at := fmt.Sprintf("redis://127.0.0.1:%d", port)
	return at, until(ctx, func(ctx context.Context) error {
		c, err := redisOpen(at)
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Ping(ctx).Err()
	})
}

func redisOpen(at string) (*redis.Client, error) {
	o, err := redis.ParseURL(at)
	if err != nil {
		return nil, err
	}
	o.PoolSize = 128
	return redis.NewClient(o), nil
}

// kvPeer updates keys of a bucket by compare-and-set: each caller of a key waits for the
// one before, and knows the revision that it left.
type kvPeer struct{}

func (kvPeer) Name() string { return storeKV }

func (kvPeer) Serve(context.Context, child.Env, func(string)) error { return errServed }

func (kvPeer) Dial(ctx context.Context, env child.Env, _ []string) (child.Caller, error) {
	conn, err := nats.Connect(env.Servers[0])
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	kv, err := js.KeyValue(ctx, kvBucket)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &kvCaller{conn: conn, kv: kv}, nil
}

type kvCaller struct {
	conn *nats.Conn
	kv   jetstream.KeyValue
	keys [updated]struct {
		sync.Mutex
		known bool
		rev   uint64
	}
}

func (c *kvCaller) Call(ctx context.Context, payload []byte) ([]byte, error) {
	n := rand.IntN(updated)
	k := &c.keys[n]
	k.Lock()
	defer k.Unlock()
	key := strconv.Itoa(n)
	for {
		if !k.known {
			switch e, err := c.kv.Get(ctx, key); {
			case err == nil:
				k.rev = e.Revision()
			case !errors.Is(err, jetstream.ErrKeyNotFound):
				return nil, err
			}
		}
		rev, err := c.kv.Update(ctx, key, payload, k.rev)
		k.rev, k.known = rev, err == nil
		var refused *jetstream.APIError
		if !errors.As(err, &refused) || refused.ErrorCode != codeWrongSequence && refused.ErrorCode != codeInFlight {
			return payload, err
		}
	}
}

// Codes of refused updates: the key is at another revision; another update of it is under
// way, as far as the leader knows.
const (
	codeWrongSequence = 10071
	codeInFlight      = 10164
)

func (c *kvCaller) Close() { c.conn.Close() }

// postgresPeer updates rows; one connection for each caller.
type postgresPeer struct{}

func (postgresPeer) Name() string { return storePostgres }

func (postgresPeer) Serve(context.Context, child.Env, func(string)) error { return errServed }

func (postgresPeer) Dial(ctx context.Context, env child.Env, _ []string) (child.Caller, error) {
	config, err := pgxpool.ParseConfig(env.Servers[0])
	if err != nil {
		return nil, err
	}
	config.MaxConns = 128
	pool, err := pgxpool.NewWithConfig(ctx, config)
	return postgresCaller{pool}, err
}

type postgresCaller struct{ pool *pgxpool.Pool }

const upsert = `INSERT INTO item AS i VALUES ($1, 1, $2) ON CONFLICT (id) DO UPDATE SET writes = i.writes + 1, data = excluded.data`

func (c postgresCaller) Call(ctx context.Context, payload []byte) ([]byte, error) {
	_, err := c.pool.Exec(ctx, upsert, rand.IntN(updated), payload)
	return payload, err
}

func (c postgresCaller) Close() { c.pool.Close() }

// redisPeer sets keys.
type redisPeer struct{}

func (redisPeer) Name() string { return storeRedis }

func (redisPeer) Serve(context.Context, child.Env, func(string)) error { return errServed }

func (redisPeer) Dial(_ context.Context, env child.Env, _ []string) (child.Caller, error) {
	c, err := redisOpen(env.Servers[0])
	return redisCaller{c}, err
}

type redisCaller struct{ client *redis.Client }

func (c redisCaller) Call(ctx context.Context, payload []byte) ([]byte, error) {
	return payload, c.client.Set(ctx, strconv.Itoa(rand.IntN(updated)), payload, 0).Err()
}

func (c redisCaller) Close() { _ = c.client.Close() }
