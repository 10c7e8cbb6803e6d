"""Labelled photographs of species to a classifier that can be trusted, compared and shipped.

Modules in reading order; each imports only what stands above it:

errors, files, paths, params, catalog, layout, archive, kaggle, sample, images, tfrecord, manifest, index, splitting,
duplicates, near_duplicates, checks, loader, device, distributed, augment, models, optim, inference, loop, checkpoint,
resume, metrics, calibration, plots, charts, gallery, classifier, heatmap, predict, pictures, standalone, onnx_export,
quantize, footprint, bench, peers, journal, tracking, runs, report, fit, search.
"""
