# syntax=docker/dockerfile:1.7
# The gateway's image: about 40 MB, no shell, no package manager, not root.
#
#   docker build -t tollgate .
#   docker run --rm -p 127.0.0.1:8080:8080 -v "$PWD/tollgate.yaml:/etc/tollgate/tollgate.yaml:ro" -v tollgate:/var/lib/tollgate tollgate

FROM rust:1.95-bookworm AS build
WORKDIR /src
# .dockerignore lets in what is compiled and nothing else, so that a changed page of documentation rebuilds nothing.
COPY . .
# The binary leaves the cached directory in the same step: a cache mount is not part of the image.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --locked --profile dist --bin tollgate \
    && install -D target/dist/tollgate /out/usr/local/bin/tollgate \
    && install -d /out/var/lib/tollgate /out/etc/tollgate

# glibc (the same release as the builder's), CA certificates and the time zones that budgets name; nothing that can be run.
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="tollgate" \
      org.opencontainers.image.description="A transparent LLM gateway" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /out/usr/local/bin/tollgate /usr/local/bin/tollgate
COPY --from=build --chown=65532:65532 /out/etc/tollgate /etc/tollgate
# A volume that is mounted here takes over this owner.
COPY --from=build --chown=65532:65532 --chmod=0700 /out/var/lib/tollgate /var/lib/tollgate
ENV TOLLGATE_CONFIG=/etc/tollgate/tollgate.yaml
WORKDIR /var/lib/tollgate
USER 65532:65532
# Clients; metrics and administration.
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 CMD ["/usr/local/bin/tollgate", "health"]
ENTRYPOINT ["/usr/local/bin/tollgate"]
CMD ["serve"]
