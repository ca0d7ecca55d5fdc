# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Evaluation of a model on a data set, and the results files."""

from .evaluate import describe_protocol, describe_run, evaluate, evaluate_model, results_as_json


__all__ = ["describe_protocol", "describe_run", "evaluate", "evaluate_model", "results_as_json"]
