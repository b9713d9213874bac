# Stands in for the official image of RabbitMQ with the management page: the user of RABBITMQ_DEFAULT_USER and
# RABBITMQ_DEFAULT_PASS may log in from everywhere. See base_images.
ARG DEBIAN
FROM $DEBIAN
RUN apt-get update \
    && apt-get install -y --no-install-recommends rabbitmq-server \
    && rm -rf /var/lib/apt/lists/* \
    && rabbitmq-plugins enable --offline rabbitmq_management
COPY rabbitmq-entrypoint.sh /usr/local/bin/
VOLUME /var/lib/rabbitmq
EXPOSE 5672 15672
ENTRYPOINT ["rabbitmq-entrypoint.sh"]
CMD ["rabbitmq-server"]
