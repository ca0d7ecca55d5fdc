# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`python -m hf_segmodels.cli`."""

import sys

from .main import main


if __name__ == "__main__":
    sys.exit(main())
