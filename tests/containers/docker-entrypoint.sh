#!/bin/sh
# What the entry points of the official images do: a file or an option is for the server, and
# the server does not run as root. They are built without the protected mode.
set -e
case $1 in
    -* | *.conf) set -- "$SERVER" "$@" ;;
esac
if [ "$1" = "$SERVER" ] && [ "$(id -u)" = 0 ]; then
    chown -R "$SERVER_USER" .
    exec setpriv --reuid="$SERVER_USER" --regid="$(id -g "$SERVER_USER")" --clear-groups \
        "$0" "$@" --protected-mode no
fi
exec "$@"
