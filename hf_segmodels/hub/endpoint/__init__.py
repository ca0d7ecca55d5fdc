# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The handler for Inference Endpoints."""
