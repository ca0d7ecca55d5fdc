# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`make demo`, the web page of `hf-segmodels demo`, and the packaged model."""
