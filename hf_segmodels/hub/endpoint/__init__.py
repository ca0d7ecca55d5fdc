# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Custom handler for Hugging Face Inference Endpoints; an export flattens these modules next to its `handler.py`."""
