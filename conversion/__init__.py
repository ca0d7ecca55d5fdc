# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The converter as a module of the checkout: `python -m conversion.convert`."""
