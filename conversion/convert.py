# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Convert a checkpoint of an original repository; the same as `hf-segmodels convert`.

    python -m conversion.convert --method segmenter --checkpoint checkpoint.pth --output_dir converted --verify
"""

import sys

from hf_segmodels.cli.main import main


if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
