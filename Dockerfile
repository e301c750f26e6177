# syntax=docker/dockerfile:1
# Two images from one wheel. `serve`, the default, runs the service, without TensorFlow, a compiler or pip.
# `full` also trains, compiles, runs local SQL, and can serve with TensorFlow.
#
#   docker build -t ext-classify .
#   docker build -t ext-classify:full --target full .
#
# The base image is Debian, or an image based on it with Python 3.11 to 3.13.
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS python
# Python, and CA certificates to fetch images by https. No program keeps a setuid or setgid bit.
# Bytecode is compiled with unchecked hashes, as layers change the files' times: otherwise each start would compile.
# hadolint ignore=SC2046
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates \
      $(command -v python3 > /dev/null || echo python3) \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/* /var/log/apt /var/log/*.log \
      /usr/share/doc /usr/share/man \
 && python3 -m compileall -q -f -x '/(tests?|bad_)' --invalidation-mode unchecked-hash \
      "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
 && find / -xdev -perm /6000 -type f -exec chmod a-s {} +

# The wheel, built with locked tools. Behind a company's proxy, pass its certificates as a secret, which stays
# out of the image: --secret id=pip_conf,src=pip.conf --secret id=ca_bundle,src=ca.crt, with `cert = /run/ca.crt`.
FROM python AS builder
# hadolint ignore=SC2046
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
      $(python3 -c 'import ensurepip' 2> /dev/null || echo python3-venv)
WORKDIR /build
COPY requirements-build.txt .
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=ca_bundle,target=/run/ca.crt \
    python3 -m venv /opt/build \
 && /opt/build/bin/pip install --quiet --no-cache-dir --require-hashes -r requirements-build.txt
COPY pyproject.toml README.md LICENSE ./
COPY infra/snowflake infra/snowflake
COPY app app
COPY model model
ARG SOURCE_DATE_EPOCH=0
RUN /opt/build/bin/python -m hatchling build --target wheel --directory /opt/wheel

FROM builder AS serve-builder
COPY requirements.txt .
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=ca_bundle,target=/run/ca.crt \
    python3 -m venv --without-pip /opt/ext-classify \
 && /opt/build/bin/pip --python /opt/ext-classify/bin/python install --quiet --no-cache-dir --no-compile --require-hashes \
      -r requirements.txt
RUN /opt/build/bin/pip --python /opt/ext-classify/bin/python install --quiet --no-compile --no-deps --no-index \
      /opt/wheel/*.whl
COPY infra/container/prune.sh .
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends binutils \
 && sh prune.sh /opt/ext-classify \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/ext-classify/lib
# The build fails unless the shipped model passes its self-test.
RUN /opt/ext-classify/bin/ext-classify verify

FROM builder AS full-builder
COPY requirements-full.txt requirements-keras2.txt ./
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=ca_bundle,target=/run/ca.crt \
    python3 -m venv --without-pip /opt/ext-classify \
 && /opt/build/bin/pip --python /opt/ext-classify/bin/python install --quiet --no-cache-dir --no-compile --require-hashes \
      -r requirements-full.txt \
 && /opt/build/bin/pip --python /opt/ext-classify/bin/python install --quiet --no-cache-dir --no-compile --require-hashes --no-deps \
      -r requirements-keras2.txt
RUN /opt/build/bin/pip --python /opt/ext-classify/bin/python install --quiet --no-compile --no-deps --no-index \
      /opt/wheel/*.whl \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/ext-classify/lib
RUN /opt/ext-classify/bin/ext-classify verify

# Both images run as an unprivileged user that can write only to /tmp.
FROM python AS runtime
ENV PATH=/opt/ext-classify/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    EXT_CLASSIFY_HOST=0.0.0.0
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python3", "-m", "app.server.probe"]
ENTRYPOINT ["ext-classify"]
CMD ["serve"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ext-classify" \
      org.opencontainers.image.description="A Keras image classifier as a Snowflake SQL function" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM runtime AS full
COPY --from=full-builder /opt/ext-classify /opt/ext-classify

# The last stage is the default target.
FROM runtime AS serve
COPY --from=serve-builder /opt/ext-classify /opt/ext-classify
