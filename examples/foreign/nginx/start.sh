#!/bin/sh
# Starts nginx in the foreground, in the instance's own directory.
set -eu
sed -e "s/@ADDRESS@/$HOST_ADDRESS/" -e "s/@PORT@/$PORT_HTTP/" -e "s/@INSTANCE@/$KBROKER_INSTANCE_NAME/" \
	"$KBROKER_ARTIFACT_DIR/nginx.conf" >nginx.conf
exec nginx -p "$PWD" -c "$PWD/nginx.conf" -e stderr
