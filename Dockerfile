# The web page and its API, for a model of this machine:
#   docker build -t fieldguide .
#   docker run -p 127.0.0.1:8000:8000 -v "$PWD/models:/guide/models:ro" fieldguide --allowed-host guide.example.org --trusted-proxy 1
FROM python:3.13-slim AS build
ENV UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1
WORKDIR /src
COPY requirements.txt ./
RUN sed -n '/^uv==/,/# via/p' requirements.txt > uv.txt && pip install --no-cache-dir --require-hashes -r uv.txt
COPY pyproject.toml README.md LICENSE ./
COPY fieldguide fieldguide
RUN uv build --quiet --wheel --build-constraints requirements.txt --out-dir dist && \
    uv venv /opt/fieldguide && \
    uv pip install --python /opt/fieldguide --constraints requirements.txt "$(ls dist/*.whl)[serve,heic]"

FROM python:3.13-slim
COPY --from=build /opt/fieldguide /opt/fieldguide
ENV PATH=/opt/fieldguide/bin:$PATH
WORKDIR /guide
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --start-period=20s --timeout=5s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["fieldguide", "serve", "--host", "0.0.0.0"]
