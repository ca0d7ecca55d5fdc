# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Errors, files, export helpers and argument parsing shared by the package."""
