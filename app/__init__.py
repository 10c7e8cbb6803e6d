"""The web page and its JSON API over `models/model.onnx`: `python -m app`. Imports neither torch, DVC nor MLflow.

Modules in reading order; each imports only what stands above it:

settings, problems, uploads, memory, model, batching, examples, metrics, openapi, web, server.
"""
