"""The web page and its JSON API over `models/model.onnx`: `fieldguide serve`. Imports neither torch, DVC nor MLflow."""
