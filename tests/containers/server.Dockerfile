# Stands in for an official image of Redis or Valkey, with the same user, folder and entry
# point. See base_images.
ARG DEBIAN
FROM $DEBIAN
ARG PACKAGE
ARG USER
ARG SERVER
ENV SERVER=$SERVER SERVER_USER=$USER
RUN apt-get update \
    && apt-get install -y --no-install-recommends $PACKAGE \
    && rm -rf /var/lib/apt/lists/* \
    && (id "$USER" || useradd --system "$USER") \
    && mkdir /data \
    && chown "$USER" /data
# Servers that Debian does not have.
COPY bin/ docker-entrypoint.sh /usr/local/bin/
VOLUME /data
WORKDIR /data
EXPOSE 6379
ENTRYPOINT ["docker-entrypoint.sh"]
