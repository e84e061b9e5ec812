package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"strconv"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kbroker/kbroker/internal/credential"
)

func writeCreds(ts *testscript.TestScript, _ bool, args []string) {
	days, err := strconv.Atoi(args[2])
	ts.Check(err)
	c, err := credential.New()
	ts.Check(err)
	account, err := nkeys.CreateAccount()
	ts.Check(err)
	claims := jwt.NewUserClaims(c.Key())
	if claims.Name = args[1]; days != 0 {
		claims.Expires = time.Now().AddDate(0, 0, days).Unix()
	}
	signed, err := claims.Encode(account)
	ts.Check(err)
	ts.Check(c.Signed(signed).Save(ts.MkAbs(args[0])))
}

func writeRoots(ts *testscript.TestScript, _ bool, args []string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	ts.Check(err)
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Check(errors.Join(pem.Encode(f, &pem.Block{Type: "CERTIFICATE", Bytes: der}), f.Close()))
}

func checkPrivate(ts *testscript.TestScript, _ bool, files []string) {
	for _, file := range files {
		info, err := os.Stat(ts.MkAbs(file))
		ts.Check(err)
		if info.Mode().Perm() != 0o600 {
			ts.Fatalf("%s has mode %v, want 0600", file, info.Mode())
		}
	}
}
