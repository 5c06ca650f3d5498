# The programs of Debian's package are not in PATH; the newest version wins.
for bin in /usr/lib/postgresql/*/bin; do
	PATH=$bin:$PATH
done
export PGDATA=/tmp/data PGHOST=127.0.0.1 PGUSER=admin PGDATABASE=postgres

initdb --auth=trust --username=admin >/tmp/initdb.log
pg_ctl --log=/tmp/server.log -o '-c unix_socket_directories=/tmp' --wait start >/dev/null
pgbench --initialize --quiet 2>/dev/null
pgbench --client=4 --transactions=50
pg_ctl --mode=fast --wait stop
