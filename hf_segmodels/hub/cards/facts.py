# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Facts about methods and data sets for model cards: origin, license, intended use."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """Facts about a method, its paper, and the authors' code."""

    name: str
    arxiv: str  # number
    title: str
    key: str  # in BibTeX
    authors: str  # in BibTeX
    venue: str  # conference and year
    repository: str
    code_license: str
    summary: str
    limits: tuple[str, ...]

    @property
    def paper(self) -> str:
        first_author = self.authors.partition(",")[0]
        return f"[{self.title}](https://arxiv.org/abs/{self.arxiv}) ({first_author} et al., {self.venue})"

    @property
    def citation(self) -> str:
        """BibTeX entry."""
        conference, year = self.venue.rsplit(" ", 1)
        fields = {"title": self.title, "author": self.authors, "booktitle": conference, "year": year}
        lines = ",\n".join(f"  {name}={{{value}}}" for name, value in fields.items())
        return f"@inproceedings{{{self.key},\n{lines}\n}}"


METHODS = {
    "segmenter": Method(
        name="Segmenter",
        arxiv="2105.05633",
        title="Segmenter: Transformer for Semantic Segmentation",
        key="strudel2021segmenter",
        authors="Strudel, Robin and Garcia, Ricardo and Laptev, Ivan and Schmid, Cordelia",
        venue="ICCV 2021",
        repository="https://github.com/rstrudel/segmenter",
        code_license="MIT",
        summary="A vision transformer encodes each patch of the image as a token. A linear layer, or a mask transformer over "
        "patch tokens and class embeddings, computes class scores for each patch. The scores are upsampled to the image by "
        "bilinear interpolation.",
        limits=(
            "Scores are computed at the encoder's stride and upsampled, so that objects thinner than a patch are lost and "
            "outlines are smooth. Smaller patches are sharper and slower.",
        ),
    ),
    "segvit": Method(
        name="SegViT",
        arxiv="2210.05844",
        title="SegViT: Semantic Segmentation with Plain Vision Transformers",
        key="zhang2022segvit",
        authors="Zhang, Bowen and Tian, Zhi and Tang, Quan and Chu, Xiangxiang and Wei, Xiaolin and Shen, Chunhua and "
        "Liu, Yifan",
        venue="NeurIPS 2022",
        repository="https://github.com/zbwxp/SegVit",
        code_license="a two-clause BSD license for academic use (commercial use needs the authors' permission)",
        summary="One query per class attends to the features of a plain vision transformer. The attention map of a query is the "
        "mask of its class (Attention-to-Mask), and the query itself predicts whether the class is in the image.",
        limits=(
            "The score of a class is a sum over all queries. It ranks the classes of a pixel, but it is not a probability and "
            "can exceed 1.",
            "If a query predicts that its class is not in the image (or window), the class is suppressed everywhere in it.",
        ),
    ),
    "regproxy": Method(
        name="RegProxy",
        arxiv="2203.14043",
        title="Semantic Segmentation by Early Region Proxy",
        key="zhang2022semantic",
        authors="Zhang, Yifan and Pang, Bo and Lu, Cewu",
        venue="CVPR 2022",
        repository="https://github.com/YiF-Zhang/RegionProxy",
        code_license="MIT",
        summary="Early layers of a vision transformer predict how strongly each pixel belongs to the tokens around it, so that "
        "every token represents a region of free shape. The last layer classifies each region.",
        limits=(
            "Each token has one set of class scores, and a pixel mixes the scores of the 3x3 tokens around it: objects smaller "
            "than a region are lost.",
            "If `forward` merges windows, its outputs hold no regions, since regions belong to one window or the whole image.",
        ),
    ),
    "unept": Method(
        name="UN-EPT",
        arxiv="2107.14209",
        title="A Unified Efficient Pyramid Transformer for Semantic Segmentation",
        key="zhu2021unified",
        authors="Zhu, Fangrui and Zhu, Yi and Zhang, Li and Wu, Chongruo and Fu, Yanwei and Li, Mu",
        venue="ICCV Workshops 2021",
        repository="https://github.com/amazon-science/unified-ept",
        code_license="Apache-2.0",
        summary="A transformer attends to a few sampled points of a feature pyramid for context, and a shallow convolutional branch "
        "keeps detail. Predicted boundaries and directions move scores from the interior of a segment to its edge.",
        limits=(
            "Refinement moves scores by one pixel, and only at predicted boundaries.",
            "Speed depends on the kernel for sparse attention; without a compiled kernel, the PyTorch reference is used.",
        ),
    ),
}


@dataclass(frozen=True)
class Dataset:
    """Facts about a data set."""

    name: str
    scenes: str
    terms: str  # license
    num_classes: int
    hub_id: str | None = None  # repository on the Hub


_PASCAL_TERMS = "license unknown; the photographs are from PASCAL VOC 2010"
_EVERYDAY_SCENES = "everyday photographs, indoors and outdoors"

DATASETS = {
    "ade20k": Dataset(
        name="ADE20K (150 classes)",
        scenes="indoor and outdoor scenes of many kinds",
        terms="images for non-commercial research and education only ([terms](https://ade20k.csail.mit.edu/terms))",
        num_classes=150,
        hub_id="zhoubolei/scene_parse_150",
    ),
    "cityscapes": Dataset(
        name="Cityscapes",
        scenes="city streets seen from a car",
        terms="non-commercial use ([terms](https://www.cityscapes-dataset.com/license/))",
        num_classes=19,
    ),
    "pascal_context_60": Dataset(
        name="Pascal Context (60 classes, with background)",
        scenes=_EVERYDAY_SCENES,
        terms=_PASCAL_TERMS,
        num_classes=60,
    ),
    "pascal_context_59": Dataset(
        name="Pascal Context (59 classes, without background)",
        scenes=_EVERYDAY_SCENES,
        terms=_PASCAL_TERMS,
        num_classes=59,
    ),
    "coco_stuff_10k": Dataset(
        name="COCO-Stuff-10K",
        scenes=_EVERYDAY_SCENES,
        terms="annotations CC BY 4.0, images under Flickr's terms of use "
        "([repository](https://github.com/nightrome/cocostuff10k))",
        num_classes=171,
    ),
    "camvid": Dataset(
        name="CamVid",
        scenes="the streets of one English town seen from a car",
        terms="research use",
        num_classes=11,
    ),
}
