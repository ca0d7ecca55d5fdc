# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Evaluation of a model on a data set, and results files."""

from .evaluate import evaluate, evaluate_model
from .results import EvaluationResults, describe_protocol, describe_run, results_as_json


__all__ = ["EvaluationResults", "describe_protocol", "describe_run", "evaluate", "evaluate_model", "results_as_json"]
