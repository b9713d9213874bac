# Puts the module into an official image of Redis or Valkey that is made from Debian:
#
#   docker build -t keyspace-amqp .
#   docker build -t keyspace-amqp --build-arg BASE=valkey/valkey:8 .
#
# /etc/keyspace-amqp/redis.conf loads the module. It is the first argument of the container: the
# entry points of these images start their server with it and with the arguments after it.
ARG BASE=redis:8-bookworm

# Debian's Python with its shared library: the same one for the build and for the image.
FROM $BASE AS python
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && apt-get install -y --no-install-recommends \
        "$(python3 -c 'import sys; print("libpython%d.%d" % sys.version_info[:2])')" \
    && rm -rf /var/lib/apt/lists/*

FROM python AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev python3-venv
WORKDIR /source
COPY pyproject.toml CMakeLists.txt README.md LICENSE ./
COPY shim shim
COPY keyspace_amqp keyspace_amqp
# The link to the module is a path without Python's version in it; the module follows links to find
# its handler. pip is not needed after this.
RUN python3 -m venv /opt/keyspace-amqp \
    && cd /opt/keyspace-amqp \
    && bin/pip install --no-cache-dir "/source[tools]" \
    && ln -s "$(bin/keyspace-amqp path)" libredis_keyspace_amqp.so \
    && bin/pip uninstall --yes setuptools pip

FROM python
COPY --from=build /opt/keyspace-amqp /opt/keyspace-amqp
# The command line, which the consumer in compose.yaml runs.
RUN ln -s /opt/keyspace-amqp/bin/keyspace-amqp /usr/local/bin/
# The folder belongs to the server's user, like /data: CONFIG REWRITE, which Sentinel gives too,
# puts a new file there.
RUN mkdir /etc/keyspace-amqp \
    && cd /etc/keyspace-amqp \
    && echo "loadmodule /opt/keyspace-amqp/libredis_keyspace_amqp.so" > redis.conf \
    && echo "keyspaceamqp.delivery-mode 2" >> redis.conf \
    && chown -R --reference=/data .
CMD ["/etc/keyspace-amqp/redis.conf"]
