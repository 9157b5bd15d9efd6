# syntax=docker/dockerfile:1
# The service in a container: docker build --target cpu . (default) or --target gpu .
# No compiler, no pip and no root in what runs, and its bytecode is made here: what runs cannot write it. deploy/try_install.sh runs these same commands without Docker.

FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1


FROM base AS build
WORKDIR /build
RUN python -m venv --without-pip /opt/answerable
COPY pyproject.toml README.md LICENSE ./
COPY service ./service
COPY deploy/constraints.txt ./deploy/constraints.txt


FROM build AS build-cpu
# The index of PyTorch's builds for CPUs; the one on PyPI brings several gigabytes of CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/answerable/bin/python install \
    --extra-index-url "$TORCH_INDEX" --constraint deploy/constraints.txt '.[cpu,traces]'


FROM build AS build-gpu
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/answerable/bin/python install \
    --constraint deploy/constraints.txt '.[gpu,traces]'


FROM base AS run
# The image of Python brings them.
RUN pip uninstall --yes pip setuptools wheel && \
    groupadd --system --gid 10001 answerable && useradd --system --uid 10001 --gid 10001 --create-home --home-dir /var/lib/answerable answerable
WORKDIR /var/lib/answerable
ENV PATH=/opt/answerable/bin:$PATH \
    ANSWERABLE_HOST=0.0.0.0 \
    ANSWERABLE_DATA=/var/lib/answerable/data \
    ANSWERABLE_MODELS=/models
COPY models /models
USER 10001:10001
RUN mkdir data
VOLUME /var/lib/answerable/data
EXPOSE 8080
# Liveness only: an orchestrator asks /v2/health/ready before it sends traffic.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/v2/health/live', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["answerable"]
CMD ["serve"]


FROM run AS gpu
COPY --from=build-gpu /opt/answerable /opt/answerable


FROM run AS cpu
COPY --from=build-cpu /opt/answerable /opt/answerable
