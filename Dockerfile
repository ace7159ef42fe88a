# docker run -p 8000:8000 -p 8001:8001 -v ./models:/models:ro warmfork
#
# Without torch: --build-arg EXTRAS=text. The CPU build of torch comes from its own index; PyPI's brings gigabytes of CUDA.
# The image has no compiler, and its user no home: a model with torch.compile = true needs an image of yours with g++, and
# TORCHINDUCTOR_CACHE_DIR naming a folder that belongs to user 10001.

FROM python:3.11-slim AS builder
# gunicorn_h1c has no wheels for Linux.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY pyproject.toml constraints.txt ./
# pip reads the version there; the code itself does not go into the venv.
COPY server/__init__.py server/
ARG EXTRAS=torch,text
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt ".[$EXTRAS]"

FROM python:3.11-slim
# A number, so that Kubernetes can see that it is not root.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin warmfork
WORKDIR /app
COPY --from=builder /venv /venv
COPY gunicorn.conf.py ./
COPY hooks/ hooks/
COPY server/ server/
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    WARMFORK_BIND=0.0.0.0:8000 \
    WARMFORK_MANAGEMENT_BIND=0.0.0.0:8001 \
    WARMFORK_MODELS=/models
USER 10001:10001
EXPOSE 8000 8001

# /readyz and not /livez: healthy is what opens a container to traffic (Swarm's routing, `service_healthy` in Compose), and no
# request may meet a cold model. But Swarm also ends what is unhealthy, so it takes interval × retries = 300 s, the default of
# WARMFORK_BOOT_TIMEOUT, to become so: a worker that is being replaced gets its time. Kubernetes ignores this and has its own probes.
HEALTHCHECK --start-period=300s --interval=10s --timeout=5s --retries=30 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['WARMFORK_MANAGEMENT_BIND'].rpartition(':')[2]), timeout=4); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]

# The master is process 1: it reaps, and TERM drains it. SIGUSR2 is refused: the end of the old master would end the container.
STOPSIGNAL SIGTERM
CMD ["gunicorn", "-c", "gunicorn.conf.py"]
