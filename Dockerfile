# tudsr as a service, with nano inside. Two targets:
#
#   docker build --target cpu -t tudsr:cpu .
#   docker build --target cuda -t tudsr:cuda .

FROM python:3.12-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 TUDSR_CACHE=/cache
# Kubernetes lets in as "not root" only whom it knows by number: 1000 is tudsr.
# Engines are compiled into /cache, pictures lie in /data: the two folders that may be written.
RUN useradd --uid 1000 --create-home tudsr && install -d -o tudsr -g tudsr /cache /data
COPY . /src
WORKDIR /data
VOLUME ["/cache", "/data"]
EXPOSE 8000
HEALTHCHECK --start-period=60s --interval=30s --timeout=5s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["tudsr"]
# Inside the container every address is the container's own; `-p 127.0.0.1:8000:8000` keeps it on the host.
CMD ["serve", "--host", "0.0.0.0"]

FROM base AS cuda
RUN pip install "/src[gpu,serve,hub,watch]" && rm -rf /src
USER 1000

# The last target is the one that is built where none is named.
FROM base AS cpu
RUN pip install "/src[openvino,cpu,serve,hub,watch]" && rm -rf /src
USER 1000
