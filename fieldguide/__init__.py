"""Labelled photographs of species to a classifier that can be trusted, compared and shipped.

Modules in reading order; each imports only what stands above it:

errors, cores, files, paths, params, catalog, layout, archive, kaggle, sample, images, tfrecord, manifest, index, splitting,
duplicates, near_duplicates, checks, loader, device, distributed, augment, models, optim, inference, loop, checkpoint,
resume, metrics, calibration, strangers, plots, charts, gallery, heatmap, classifier, predict, pictures, standalone,
onnx_export, quantize, footprint, bench, peers, journal, store, sender, tracking, runs, registry, champion, report, fit,
search.
"""
