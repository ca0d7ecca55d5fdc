# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""What model cards say of methods and data sets: where they come from, their licenses, what they are good for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """
    What a card says of a method.

    Args:
        name (`str`): As its paper calls it.
        arxiv (`str`): Number of the paper.
        title, venue (`str`): Of the paper.
        repository (`str`): Of the authors' code.
        code_license (`str`): License of that code, as a card says it.
        summary (`str`): How it works.
        limits (`tuple[str, ...]`): What it does badly, or not at all.
        citation (`str`): BibTeX.
    """

    name: str
    arxiv: str
    title: str
    venue: str
    repository: str
    code_license: str
    summary: str
    limits: tuple[str, ...]
    citation: str

    @property
    def paper(self) -> str:
        return f"[{self.title}](https://arxiv.org/abs/{self.arxiv}) ({self.venue})"


METHODS = {
    "segmenter": Method(
        name="Segmenter",
        arxiv="2105.05633",
        title="Segmenter: Transformer for Semantic Segmentation",
        venue="Strudel et al., ICCV 2021",
        repository="https://github.com/rstrudel/segmenter",
        code_license="MIT",
        summary="A vision transformer gives one token for each patch of the image. A linear layer, or a mask transformer that "
        "works on patches and one embedding for each class together, gives each patch its scores, which are enlarged to the "
        "image by bilinear interpolation.",
        limits=(
            "Scores are found at the encoder's stride and enlarged, so what is thinner than a patch gets lost and outlines "
            "are smooth; smaller patches are sharper and slower.",
        ),
        citation="""\
@inproceedings{strudel2021segmenter,
  title={Segmenter: Transformer for Semantic Segmentation},
  author={Strudel, Robin and Garcia, Ricardo and Laptev, Ivan and Schmid, Cordelia},
  booktitle={ICCV},
  year={2021}
}""",
    ),
    "segvit": Method(
        name="SegViT",
        arxiv="2210.05844",
        title="SegViT: Semantic Segmentation with Plain Vision Transformers",
        venue="Zhang et al., NeurIPS 2022",
        repository="https://github.com/zbwxp/SegVit",
        code_license="a two-clause BSD license for academic use; the authors are to be asked for commercial use",
        summary="A query for each class attends to the features of a plain vision transformer; how much it attends to a patch is "
        "its mask there (Attention-to-Mask), and the query itself says whether its class is in the image.",
        limits=(
            "A class's score is a sum over all queries: it ranks the classes of a pixel, but is no probability and not bounded "
            "by 1.",
            "Where a query says that its class is not in the image (or window), the class is suppressed everywhere in it.",
        ),
        citation="""\
@inproceedings{zhang2022segvit,
  title={SegViT: Semantic Segmentation with Plain Vision Transformers},
  author={Zhang, Bowen and Tian, Zhi and Tang, Quan and Chu, Xiangxiang and Wei, Xiaolin and Shen, Chunhua and Liu, Yifan},
  booktitle={NeurIPS},
  year={2022}
}""",
    ),
    "regproxy": Method(
        name="RegProxy",
        arxiv="2203.14043",
        title="Semantic Segmentation by Early Region Proxy",
        venue="Zhang et al., CVPR 2022",
        repository="https://github.com/YiF-Zhang/RegionProxy",
        code_license="MIT",
        summary="Early layers of a vision transformer say how much each pixel belongs to the tokens around it, which makes every "
        "token a region of free shape; the last layer says what each region is.",
        limits=(
            "Each token has one set of class scores, and a pixel mixes those of the 3x3 tokens around it: what is smaller than "
            "a region is lost.",
            "Where `forward` merges windows, its outputs hold no regions; those belong to one window or the whole image.",
        ),
        citation="""\
@inproceedings{zhang2022semantic,
  title={Semantic Segmentation by Early Region Proxy},
  author={Zhang, Yifan and Pang, Bo and Lu, Cewu},
  booktitle={CVPR},
  year={2022}
}""",
    ),
    "unept": Method(
        name="UN-EPT",
        arxiv="2107.14209",
        title="A Unified Efficient Pyramid Transformer for Semantic Segmentation",
        venue="Zhu et al., ICCV Workshops 2021",
        repository="https://github.com/amazon-science/unified-ept",
        code_license="Apache-2.0",
        summary="A transformer attends to a few sampled points of a pyramid of features (context), a shallow convolutional branch "
        "keeps detail, and predicted boundaries and directions move scores from inside a segment to its edge.",
        limits=(
            "Refinement moves scores by one pixel and only where a boundary is predicted.",
            "Speed depends on the kernel for sparse attention; without a compiled one its reference in PyTorch is used.",
        ),
        citation="""\
@inproceedings{zhu2021unified,
  title={A Unified Efficient Pyramid Transformer for Semantic Segmentation},
  author={Zhu, Fangrui and Zhu, Yi and Zhang, Li and Wu, Chongruo and Fu, Yanwei and Li, Mu},
  booktitle={ICCV Workshops},
  year={2021}
}""",
    ),
}


@dataclass(frozen=True)
class Dataset:
    """
    What a card says of a data set.

    Args:
        name (`str`): As its authors call it.
        scenes (`str`): What is on its images.
        terms (`str`): Its license, as a card says it.
        num_classes (`int`): Number of its classes.
        hub_id (`str`, *optional*): Its repository on the Hub.
    """

    name: str
    scenes: str
    terms: str
    num_classes: int
    hub_id: str | None = None


_PASCAL_TERMS = "no license of it is known here; its photographs are those of PASCAL VOC 2010"
_PASCAL_SCENES = "everyday photographs, indoors and outdoors"

DATASETS = {
    "ade20k": Dataset(
        name="ADE20K (150 classes)",
        scenes="indoor and outdoor scenes of many kinds",
        terms="its images are for non-commercial research and education only ([terms](https://ade20k.csail.mit.edu/terms))",
        num_classes=150,
        hub_id="zhoubolei/scene_parse_150",
    ),
    "cityscapes": Dataset(
        name="Cityscapes",
        scenes="city streets seen from a car",
        terms="its own terms, for non-commercial use ([terms](https://www.cityscapes-dataset.com/license/))",
        num_classes=19,
    ),
    "pascal_context_60": Dataset(
        name="Pascal Context (60 classes, background among them)",
        scenes=_PASCAL_SCENES,
        terms=_PASCAL_TERMS,
        num_classes=60,
    ),
    "pascal_context_59": Dataset(
        name="Pascal Context (59 classes, without background)",
        scenes=_PASCAL_SCENES,
        terms=_PASCAL_TERMS,
        num_classes=59,
    ),
    "coco_stuff_10k": Dataset(
        name="COCO-Stuff-10K",
        scenes="everyday photographs, indoors and outdoors",
        terms="annotations CC BY 4.0, images under Flickr's terms of use "
        "([its repository](https://github.com/nightrome/cocostuff10k))",
        num_classes=171,
    ),
    "camvid": Dataset(
        name="CamVid",
        scenes="the streets of one English town seen from a car",
        terms="research use",
        num_classes=11,
    ),
}


__all__ = ["DATASETS", "METHODS", "Dataset", "Method"]
