# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The packaged model and a photograph to try it on."""

from pathlib import Path

from PIL import Image

from ..utils.errors import UserError


DEMO_MODEL = Path(__file__).parent / "model"
"""Folder of the packaged model: 11 classes of street scenes, trained on CamVid."""

PHOTOGRAPH = "china.jpg"
CREDIT = (
    f"Photograph: {PHOTOGRAPH} of scikit-learn, by danielbuechele (www.flickr.com/photos/danielbuechele), "
    "CC BY 2.0 (creativecommons.org/licenses/by/2.0)."
)


def sample_photograph() -> Image.Image:
    """
    Return scikit-learn's sample photograph, RGB.

    Raises:
        UserError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise UserError(
            "the sample photograph is part of scikit-learn, which is not installed: `pip install 'hf_segmodels[demo]'`, or "
            "give a photograph with --image PATH."
        ) from error
    return Image.fromarray(load_sample_image(PHOTOGRAPH))
