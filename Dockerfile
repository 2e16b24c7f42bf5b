# steerdec in a container (docs/docker.md). On a GPU host `docker build .`, without one `docker build --target cpu .`
#
# Both base images are arguments, for a mirror or another supported version of vLLM. A package index of your own, with
# whatever password it needs, comes in as a secret and is kept nowhere: `--secret id=pip,src=$HOME/.config/pip/pip.conf`.
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0
ARG PYTHON_IMAGE=python:3.11-slim

# The wheel, made apart, so that neither image keeps the sources or what builds them.
FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY . .
RUN --mount=type=secret,id=pip \
    PIP_CONFIG_FILE=/run/secrets/pip python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM ${PYTHON_IMAGE} AS cpu
ARG PYTHON_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
# An index with CPU builds of torch, where pip's own has CUDA builds only. For an index with a password take the secret.
ARG PIP_EXTRA_INDEX_URL
# vLLM's CPU build is linked to libnuma. A C library of the distribution's: whatever patch level it is at.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log \
    && useradd --uid 10001 --gid 0 --create-home steerdec \
    && chmod -R g=u /home/steerdec
ENV PATH=/opt/steerdec/bin:$PATH
# The complete pinned list, not resolved again, as `make` installs it.
RUN --mount=type=secret,id=pip \
    --mount=type=bind,source=requirements,target=/tmp/requirements \
    --mount=type=bind,from=wheel,source=/dist,target=/tmp/dist \
    export PIP_CONFIG_FILE=/run/secrets/pip \
    && python3 -m venv /opt/steerdec \
    && python -m pip install --no-cache-dir --no-deps --requirement /tmp/requirements/cpu.txt /tmp/dist/*.whl \
    && steerdec --version
LABEL org.opencontainers.image.title="steerdec" \
      org.opencontainers.image.description="Entropy steering for vLLM, served over the OpenAI API (CPU)" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"
# HOME and USER for users that are not in /etc/passwd (`docker run --user`): torch asks for a name, caches need a place.
ENV HOME=/home/steerdec USER=steerdec PYTHONUNBUFFERED=1
USER 10001:0
WORKDIR /home/steerdec
EXPOSE 8000
STOPSIGNAL SIGTERM
# Answers only once the model is loaded, so healthy means ready. A dead engine ends the container, whatever this says.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20m --retries=3 \
    CMD ["python3", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["steerdec"]
CMD ["serve", "--host", "0.0.0.0"]

FROM ${VLLM_IMAGE} AS gpu
ARG VLLM_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG PIP_EXTRA_INDEX_URL
# hadolint ignore=DL3002
USER 0
RUN useradd --uid 10001 --gid 0 --create-home steerdec && chmod -R g=u /home/steerdec
# Beside the image's own vLLM: nothing that is there changes its version, what is missing comes at the version it was
# tested with. gguf and accelerate are for the embedded model. An image with another vLLM is refused here, not at start.
RUN --mount=type=secret,id=pip \
    --mount=type=bind,source=requirements,target=/tmp/requirements \
    --mount=type=bind,source=deploy,target=/tmp/deploy \
    --mount=type=bind,from=wheel,source=/dist,target=/tmp/dist \
    export PIP_CONFIG_FILE=/run/secrets/pip \
    && python3 /tmp/deploy/constraints.py /tmp/requirements/cpu.txt > /tmp/constraints.txt \
    && python3 -m pip install --no-cache-dir --break-system-packages --constraint /tmp/constraints.txt \
        gguf accelerate /tmp/dist/*.whl \
    && rm /tmp/constraints.txt \
    && python3 -c "from importlib.metadata import version; from steerdec.vllm_plugin import versions; versions.check('vllm', version('vllm'))" \
    && steerdec --version
LABEL org.opencontainers.image.title="steerdec" \
      org.opencontainers.image.description="Entropy steering for vLLM, served over the OpenAI API (CUDA)" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${VLLM_IMAGE}"
ENV HOME=/home/steerdec USER=steerdec PYTHONUNBUFFERED=1
USER 10001:0
WORKDIR /home/steerdec
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20m --retries=3 \
    CMD ["python3", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["steerdec"]
CMD ["serve", "--host", "0.0.0.0"]
