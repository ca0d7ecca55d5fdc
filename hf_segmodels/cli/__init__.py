# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The program `hf-segmodels`, with one module per command."""
