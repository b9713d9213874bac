# The module in an official image of Redis or Valkey, of those that are made from Debian:
#
#   docker build -t keyspace-amqp .
#   docker build -t keyspace-amqp --build-arg BASE=valkey/valkey:8 .
#
# /opt/keyspace-amqp/redis.conf loads it. As the first argument it is enough: the images
# give it to their server, whichever that is, and pass on the arguments behind it.
ARG BASE=redis:8-bookworm

# Debian's Python with its shared library; the build and the image have the same one.
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
# The links: a path without Python's version in it, as the module follows links to find its
# handler; and the command, for the consumer in compose.yaml. Nothing needs pip afterwards.
RUN python3 -m venv /opt/keyspace-amqp \
    && cd /opt/keyspace-amqp \
    && bin/pip install --no-cache-dir "/source[tools]" \
    && ln -s "$(bin/keyspace-amqp path)" libredis_keyspace_amqp.so \
    && echo "loadmodule $PWD/libredis_keyspace_amqp.so" > redis.conf \
    && bin/pip uninstall --yes setuptools pip

FROM python
COPY --from=build /opt/keyspace-amqp /opt/keyspace-amqp
RUN ln -s /opt/keyspace-amqp/bin/keyspace-amqp /usr/local/bin/
CMD ["/opt/keyspace-amqp/redis.conf"]
