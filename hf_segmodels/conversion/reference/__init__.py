# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Independent forward passes over the original weights, one module per method; `--verify` compares with them."""
